"""Requests that wait for a place: their order, evictions for them, and clients that leave."""

from __future__ import annotations

from lifecycle_tools import router, settle
from router_tools import until


async def test_busy_model_is_not_evicted() -> None:
    async with router() as r:
        await r.up("a")
        busy = r.client("a")
        await settle()
        queued = r.client("b")
        await settle()
        assert not r.launcher["a"].must_go
        await busy.finish()
        await settle()
        assert r.launcher["a"].stop_asked
        assert r.status("a") == "loaded", "shown as it was until it is gone"
        assert r.status("b") == "unloaded"
        r.launcher["a"].leave()
        await settle()
        r.launcher["b"].ready()
        await settle()
        await queued.finish()


async def test_many_requests_for_one_model_cost_one_eviction() -> None:
    async with router(models_max=2) as r:
        await r.up("a", "b")
        busy = r.client("a")
        await settle()
        waiting = [r.client("c") for _ in range(3)]
        await settle()
        assert r.launcher["b"].stop_asked
        r.launcher["b"].leave()
        await settle()
        r.launcher["c"].ready()
        await settle()
        assert all(client.is_served for client in waiting)
        await busy.finish()
        for client in waiting:
            await client.finish()
        assert not r.launcher["a"].must_go
        assert len(r.launcher.workers) == 3


async def test_client_that_leaves_the_queue_causes_no_load_and_no_eviction() -> None:
    async with router() as r:
        await r.up("a")
        busy = r.client("a")
        await settle()
        queued = r.client("b")
        await settle()
        await queued.leave()
        await busy.finish()
        await settle()
        assert not r.launcher["a"].must_go
        assert r.status("b") == "unloaded"


async def test_queue_is_served_in_order() -> None:
    async with router() as r:
        await r.up("a")
        busy = r.client("a")
        await settle()
        first, second = r.client("b"), r.client("c")
        await settle()
        await busy.finish()
        r.launcher["a"].leave()
        await settle()
        assert [worker.name for worker in r.launcher.alive] == ["b"]
        r.launcher["b"].ready()
        await settle()
        assert first.is_served
        assert not second.is_served
        await first.finish()
        await settle()
        r.launcher["b"].leave()
        await settle()
        r.launcher["c"].ready()
        await settle()
        await second.finish()


async def test_model_loaded_for_a_waiter_serves_it_before_it_can_be_evicted() -> None:
    async with router() as r:
        first, second = r.client("a"), r.client("b")
        await settle()
        r.launcher["a"].ready()
        assert not r.launcher["a"].must_go, "not even in the moment before its waiter wakes up"
        await settle()
        assert first.is_served
        await first.finish()
        await settle()
        assert r.launcher["a"].stop_asked
        r.launcher["a"].leave()
        await settle()
        r.launcher["b"].ready()
        await settle()
        await second.finish()


async def test_client_that_disconnects_when_its_lease_is_granted() -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await client.leave()
        assert r.lifecycle.view("a").leases == 0  # type: ignore[union-attr]


async def test_request_on_a_stopping_model_gets_the_next_instance() -> None:
    async with router() as r:
        await r.up("a")
        await r.lifecycle.unload("a")
        client = r.client("a")
        await settle()
        assert len(r.launcher.workers) == 1
        r.launcher["a"].leave()
        await settle()
        r.launcher["a"].ready()
        await settle()
        await client.finish()


async def test_unload_while_loading_refuses_earlier_requests_and_serves_later_ones() -> None:
    async with router() as r:
        early = r.client("a")
        await settle()
        await r.lifecycle.unload("a")
        late = r.client("a")
        await settle()
        assert r.launcher["a"].kill_asked
        r.launcher["a"].leave()
        assert (await early.refused()).status == 500
        view = r.lifecycle.view("a")
        assert view is not None
        assert view.status == "loading", "for the late one"
        r.launcher["a"].ready()
        await settle()
        await late.finish()


async def test_gets_keep_a_model_busy_but_do_not_count_as_use() -> None:
    async with router(models_max=2) as r:
        await r.up("a", "b")
        for client in (r.client("a", touch=False), r.client("b")):
            await settle()
            await client.finish()
        waiting = r.client("c")
        await settle()
        assert r.launcher["a"].stop_asked
        r.launcher["a"].leave()
        await waiting.leave()


async def test_sleeping_models_serve_requests_count_and_may_be_evicted() -> None:
    async with router() as r:
        await r.up("a")
        r.launcher["a"].report("sleeping")
        assert r.status("a") == "sleeping"
        client = r.client("a")
        await settle()
        assert client.is_served, "the request itself wakes it"
        r.launcher["a"].report("loading")
        other = r.client("a")
        await settle()
        assert not other.is_served
        r.launcher["a"].report("ready")
        await settle()
        assert r.lifecycle.view("a").info == {"id": "a"}, "waking up says nothing new"  # type: ignore[union-attr]
        await client.finish()
        await other.finish()
        r.launcher["a"].report("sleeping")
        waiting = r.client("b")
        await settle()
        assert r.launcher["a"].stop_asked
        await waiting.leave()


async def test_without_a_limit_nothing_is_evicted() -> None:
    async with router(models_max=0) as r:
        clients = [r.client(name) for name in "abc"]
        for name in "abc":
            await settle()
            r.launcher[name].ready()
        await settle()
        assert all(client.is_served for client in clients)
        for client in clients:
            await client.finish()
        assert not any(worker.must_go for worker in r.launcher.workers)


async def test_delayed_start_is_cancelled_when_no_request_waits_any_more() -> None:
    async with router(load_delay=0.05) as r:
        gone, stays = r.client("a"), r.client("b")
        await settle()
        await gone.leave()
        await until(lambda: r.launcher.workers)
        assert r.launcher.workers[0].name == "b"
        r.launcher["b"].ready()
        await settle()
        await stays.finish()
