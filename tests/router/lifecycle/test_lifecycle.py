"""The lifecycle as handlers use it: leases, the queue, commands, events, reload and shutdown."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_tools import LifecycleHarness, drained, router, settle
from llama_corral.common.base.errors import ConfigError, InvalidRequest, NotFound, ServerFault, Unavailable
from llama_corral.router.models.events import BACKLOG
from router_tools import preset, presets, until

# -- leases ------------------------------------------------------------------------------------------------------------


async def test_request_loads_waits_and_is_served() -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        assert r.status("a") == "loading"
        assert not client.is_served
        r.launcher["a"].ready()
        await settle()
        assert client.lease is not None
        assert (client.lease.model, client.lease.endpoint) == ("a", r.launcher["a"].endpoint)
        view = r.lifecycle.view("a")
        assert view is not None
        assert (view.status, view.leases, view.info) == ("loaded", 1, {"id": "a"})
        await client.finish()
        assert r.lifecycle.view("a").leases == 0  # type: ignore[union-attr]


async def test_refusals_of_requests() -> None:
    async with router("a", presets=presets(preset("a", aliases=("x", "y")))) as r:
        for name, text in (("", "model name is missing from the request"), ("q", "model 'q' not found")):
            refused = await r.client(name).refused()
            assert (refused.message, type(refused)) == (text, InvalidRequest)
        assert (await r.client("x", autoload=False).refused()).message == "model is not loaded"
        assert r.lifecycle.find("y") == "a"
        assert r.lifecycle.find("Y") is None
        assert not r.launcher.workers


async def test_without_autoload_a_loading_model_still_gets_requests() -> None:
    async with router(autoload=False) as r:
        assert (await r.client("a").refused()).message == "model is not loaded"
        await r.lifecycle.load("a")
        client = r.client("a")
        await settle()
        assert client.is_served
        await client.finish()
        await r.lifecycle.unload("a")
        assert (await r.client("a").refused()).message == "model is not loaded"


async def test_failed_load_refuses_requests_with_its_reason() -> None:
    async with router() as r:
        clients = [r.client("a"), r.client("a")]
        await settle()
        r.launcher["a"].report("failed", message="no such file: a.gguf")
        r.launcher["a"].exit(1)
        for client in clients:
            refused = await client.refused()
            assert isinstance(refused, ServerFault)
            assert refused.message == "model name=a failed to load: no such file: a.gguf"
        view = r.lifecycle.view("a")
        assert view is not None
        assert (view.status, view.is_failed, view.exit_code) == ("unloaded", True, 1)
        assert view.failure == "no such file: a.gguf"


@pytest.mark.parametrize(
    ("code", "lines", "reason"),
    [
        (3, ("one", "two ", "three", "four"), "its process exited with code 3; its last lines: two | three | four"),
        (-11, (), "it crashed: its process was ended by SIGSEGV"),
        (
            -6,
            ("a", "x.c:1: GGML_ASSERT(y) failed"),
            "x.c:1: GGML_ASSERT(y) failed: its process was ended by SIGABRT; "
            "its last lines: a | x.c:1: GGML_ASSERT(y) failed",
        ),
    ],
)
async def test_exit_without_report_while_loading_is_explained_by_the_log(
    code: int, lines: tuple[str, ...], reason: str
) -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        r.launcher["a"].last_lines = lines
        r.launcher["a"].exit(code)
        assert (await client.refused()).message == f"model name=a failed to load: {reason}"
        view = r.lifecycle.view("a")
        assert view is not None
        assert view.exit_code == (code if code > 0 else 1)
        assert view.last_lines == lines


async def test_worker_that_exits_with_0_while_loading() -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        r.launcher["a"].exit(0)
        assert (await client.refused()).message == "model name=a is not running"


async def test_process_cannot_be_started() -> None:
    async with router() as r:
        r.launcher.refusal = OSError(11, "Resource temporarily unavailable")
        waiting = [r.client("a"), r.client("b")]
        for client in waiting:
            assert "Resource temporarily unavailable" in (await client.refused()).message
        with pytest.raises(ServerFault, match="failed to spawn server instance"):
            await r.lifecycle.load("c")
        r.launcher.refusal = None
        await r.up("a")
        assert r.status("a") == "loaded"


async def test_next_request_tries_a_failed_model_again() -> None:
    async with router() as r:
        first = r.client("a")
        await settle()
        r.launcher["a"].exit(1)
        await first.refused()
        second = r.client("a")
        await settle()
        assert r.status("a") == "loading"
        assert r.lifecycle.view("a").is_failed is False  # type: ignore[union-attr]
        r.launcher["a"].ready()
        await settle()
        await second.finish()


async def test_worker_that_dies_while_it_is_leased() -> None:
    async with router() as r:
        await r.up("a")
        old = r.client("a")
        await settle()
        r.launcher["a"].exit(-6)
        new = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        assert new.is_served
        await old.finish()
        assert r.lifecycle.view("a").leases == 1, "the old lease was on another instance"  # type: ignore[union-attr]
        await new.finish()


# -- the queue ---------------------------------------------------------------------------------------------------------


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


# -- commands ----------------------------------------------------------------------------------------------------------


async def test_refused_commands_have_the_errors_of_llama_server() -> None:
    async with router(models_max=2) as r:
        for command, error, text in (
            (r.lifecycle.load("q"), NotFound, "model is not found"),
            (r.lifecycle.unload("q"), InvalidRequest, "model is not found"),
            (r.lifecycle.unload("a"), InvalidRequest, "model is not running"),
        ):
            with pytest.raises(error, match=text):
                await command
        await r.lifecycle.load("a")
        with pytest.raises(InvalidRequest, match="model is already running"):
            await r.lifecycle.load("a")
        r.launcher["a"].ready()
        await r.up("b")
        busy = [r.client("a"), r.client("b")]
        await settle()
        with pytest.raises(ServerFault, match="model limit reached, try again later"):
            await r.lifecycle.load("c")
        for client in busy:
            await client.finish()


async def test_load_at_the_limit_evicts_the_least_recently_used_and_waits_for_it() -> None:
    async with router(models_max=2) as r:
        await r.up("a", "b")
        again = r.client("a")
        await settle()
        await again.finish()
        loading = asyncio.create_task(r.lifecycle.load("c"))
        await settle()
        assert r.launcher["b"].stop_asked
        assert not loading.done()
        r.launcher["b"].leave()
        await loading
        assert r.status("c") == "loading"


@pytest.mark.parametrize("why", ["unload", "eviction", "failing unload", "unload of a loading model"])
async def test_a_load_of_a_stopping_model_waits_for_its_end(why: str) -> None:
    async with router(models_max=2) as r:
        if why == "unload of a loading model":
            await r.lifecycle.load("a")
        else:
            await r.up("a", "b")
        if why == "eviction":
            evicting = asyncio.create_task(r.lifecycle.load("c"))
            await settle()
        else:
            await r.lifecycle.unload("a")
        before = r.launcher["a"]
        loading = asyncio.create_task(r.lifecycle.load("a"))
        await settle()
        assert (loading.done(), r.launcher["a"] is before) == (False, True)
        before.exit(1 if why == "failing unload" else 0)
        if why == "eviction":
            await evicting
            await settle()
            assert r.launcher["b"].stop_asked, "it needs a place, as any load does"
            r.launcher["b"].leave()
        await loading
        assert r.launcher["a"] is not before
        assert r.status("a") == "loading"


async def test_a_load_that_waits_for_the_end_of_a_worker_may_be_refused() -> None:
    async with router(models_max=2) as r:
        await r.up("a", "b")
        for name in ("a", "b"):
            await r.lifecycle.unload(name)
        gone, closed = (asyncio.create_task(r.lifecycle.load(name)) for name in ("a", "b"))
        left = asyncio.create_task(r.lifecycle.load("b"))
        await settle()
        reloading = asyncio.create_task(r.lifecycle.reload(presets(preset("b"))))
        left.cancel()
        await settle()
        r.launcher["a"].leave()
        await reloading
        with pytest.raises(NotFound):
            await gone
        r.lifecycle.stop_serving()
        with pytest.raises(Unavailable):
            await closed


async def test_load_by_command_serves_queued_requests() -> None:
    async with router(models_max=2) as r:
        head, behind = r.client("a"), r.client("b")
        await settle()
        assert [worker.name for worker in r.launcher.workers] == ["a"]
        await r.lifecycle.load("b")
        r.launcher["b"].ready()
        await settle()
        assert behind.is_served
        assert not head.is_served
        r.launcher["a"].ready()
        await settle()
        await head.finish()
        await behind.finish()
        assert len(r.launcher.workers) == 2


async def test_worker_is_killed_after_its_stop_timeout() -> None:
    async with router("a", presets=presets(preset("a", stop_timeout=0.01))) as r:
        await r.up("a")
        await r.lifecycle.unload("a")
        assert not r.launcher["a"].kill_asked
        await until(lambda: r.launcher["a"].kill_asked)
        r.launcher["a"].leave()
        view = r.lifecycle.view("a")
        assert view is not None
        assert (view.is_failed, view.exit_code) == (True, 1)


async def test_startup_models() -> None:
    entries = presets(preset("a"), preset("c", load_on_startup=True), preset("b", load_on_startup=True))
    with pytest.raises(ConfigError, match=r"load on startup \(2\) exceeds models_max \(1\)"):
        LifecycleHarness(presets=entries, models_max=1)

    for models_max in (2, 0):
        async with router(presets=entries, models_max=models_max) as r:
            await r.lifecycle.start()
            assert [worker.name for worker in r.launcher.workers] == ["b", "c"]


async def test_reports_without_an_allowed_transition_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with router() as r:
        await r.lifecycle.load("a")
        r.launcher["a"].report("sleeping")
        assert r.status("a") == "loading"
        r.launcher["a"].ready()
        r.launcher["a"].report("loading")
        assert r.status("a") == "loaded"
    assert "no transition from loading to sleeping" in caplog.text


# -- views and events --------------------------------------------------------------------------------------------------


async def test_command_line_is_known_before_and_after_the_start() -> None:
    async with router("a", presets=presets(preset("a", "m.gguf", options={"ctx_size": 512}))) as r:
        before = r.lifecycle.views()[0].command_line
        assert before[0] == "fake"
        assert {"--ctx-size", "512", "--model", "m.gguf", "--alias", "a"} <= set(before)
        await r.up("a")
        assert r.lifecycle.views()[0].command_line == (*before, "--host", r.launcher["a"].endpoint)


async def test_secrets_are_passed_in_the_environment_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    async with router("a", presets=presets(preset("a", options={"hf_token": "hf_secret"}))) as r:
        with caplog.at_level("DEBUG"):
            await r.up("a")
        assert r.launcher["a"].environ == {"HF_TOKEN": "hf_secret"}
        assert "hf_secret" not in " ".join(r.launcher["a"].arguments)
        assert "hf_secret" not in " ".join(r.lifecycle.views()[0].command_line)
    assert "hf_secret" not in caplog.text


async def test_events_are_those_of_llama_server() -> None:
    async with router() as r, r.lifecycle.subscribe() as events:
        await r.lifecycle.load("a")
        r.launcher["a"].report("loading", stages=["text_model"], current="text_model", value=0.5)
        r.launcher["a"].report("ready", id="a", meta={})
        r.launcher["a"].report("sleeping")
        r.launcher["a"].report("loading")
        r.launcher["a"].report("ready")
        await r.lifecycle.unload("a")
        r.launcher["a"].leave()
        progress = {"stages": ["text_model"], "current": "text_model", "value": 0.5}
        assert drained(events) == [
            ("a", "model_status", {"status": "loading"}),
            ("a", "status_change", {"status": "loading", "progress": progress}),
            ("a", "status_change", {"status": "loaded", "info": {"id": "a", "meta": {}}}),
            ("a", "status_change", {"status": "sleeping"}),
            ("a", "status_change", {"status": "loading", "progress": {}}),
            ("a", "status_change", {"status": "loaded"}),
            ("a", "status_change", {"status": "unloaded", "exit_code": 0}),
        ]
        await r.lifecycle.reload(presets(preset("a")))
        assert drained(events) == [("*", "models_reload", None)]


async def test_slow_listener_is_cut_off_and_delays_no_other() -> None:
    async with router() as r, r.lifecycle.subscribe() as events, r.lifecycle.subscribe() as other:
        await r.lifecycle.load("a")
        for _ in range(2 * BACKLOG):
            r.launcher["a"].report("loading")
            assert other.get_nowait() is not None
        assert events.qsize() == BACKLOG + 1
        assert [events.get_nowait() for _ in range(BACKLOG + 1)][-1] is None


# -- reload ------------------------------------------------------------------------------------------------------------


async def test_reload_restarts_only_changed_models() -> None:
    same = preset("a", options={"ctx_size": 512})
    async with router(models_max=0, presets=presets(same, preset("b"), preset("c"), preset("d"))) as r:
        await r.up("a", "b", "c")
        relabelled = preset("a", options={"ctx_size": 512}, aliases=("x",), tags=("new",), stop_timeout=3.0)
        changed = preset("b", options={"ctx_size": 1024})
        reload = asyncio.create_task(r.lifecycle.reload(presets(relabelled, changed, preset("e"))))
        await settle()
        assert not r.launcher["a"].must_go
        assert r.launcher["b"].stop_asked
        assert r.launcher["c"].stop_asked
        assert not reload.done()
        r.launcher["b"].leave()
        r.launcher["c"].leave()
        await reload
        assert [view.name for view in r.lifecycle.views()] == ["a", "b", "e"]
        assert r.lifecycle.find("x") == "a"
        assert "1024" in r.lifecycle.views()[1].command_line


async def test_reload_neither_waits_for_streams_nor_breaks_them() -> None:
    async with router() as r:
        await r.up("a")
        streaming = r.client("a")
        await settle()
        await r.lifecycle.reload(presets(preset("a", options={"ctx_size": 64})))
        assert not r.launcher["a"].must_go
        new = r.client("a")
        await settle()
        assert not new.is_served
        await streaming.finish()
        assert r.launcher["a"].stop_asked
        r.launcher["a"].leave()
        await settle()
        assert "64" in r.launcher["a"].arguments
        r.launcher["a"].ready()
        await settle()
        await new.finish()


async def test_reload_that_brings_the_old_preset_back_ends_a_retirement() -> None:
    async with router() as r:
        await r.up("a")
        streaming = r.client("a")
        await settle()
        await r.lifecycle.reload({})
        waiting = r.client("a")
        await settle()
        await r.lifecycle.reload(presets(preset("a")))
        await settle()
        assert waiting.is_served
        await waiting.finish()
        await streaming.finish()
        assert not r.launcher["a"].must_go


async def test_reload_drops_a_busy_model_when_it_is_idle() -> None:
    async with router() as r:
        await r.up("a")
        streaming = r.client("a")
        await settle()
        await r.lifecycle.reload(presets(preset("b")))
        waiting = r.client("a")
        await settle()
        await streaming.finish()
        r.launcher["a"].leave()
        assert (await waiting.refused()).message == "model 'a' not found"
        assert [view.name for view in r.lifecycle.views()] == ["b"]


async def test_nothing_starts_during_a_reload() -> None:
    async with router(models_max=2) as r:
        await r.up("a")
        reload = asyncio.create_task(r.lifecycle.reload(presets(preset("b"), preset("c"))))
        await settle()
        queued = r.client("b")
        command = asyncio.create_task(r.lifecycle.load("c"))
        await settle()
        assert len(r.launcher.workers) == 1
        r.launcher["a"].leave()
        await reload
        await command
        await settle()
        assert {worker.name for worker in r.launcher.alive} == {"b", "c"}
        r.launcher["b"].ready()
        await settle()
        await queued.finish()


async def test_reload_clears_a_failure() -> None:
    async with router() as r:
        await r.lifecycle.load("a")
        r.launcher["a"].exit(1)
        await r.lifecycle.reload(presets(preset("a")))
        assert not r.lifecycle.views()[0].is_failed


# -- shutdown ----------------------------------------------------------------------------------------------------------


async def test_close_kills_loading_workers_stops_the_others_and_waits_for_all() -> None:
    r = LifecycleHarness(models_max=2)
    await r.up("a")
    await r.lifecycle.load("b")
    streaming = r.client("a")
    await settle()
    waiting = r.client("c")
    async with r.lifecycle.subscribe() as events:
        await settle()
        closing = asyncio.create_task(r.lifecycle.close())
        await settle()
        assert isinstance(await waiting.refused(), Unavailable)
        assert isinstance(await r.client("a").refused(), Unavailable)
        assert events.get_nowait() is None
    assert r.launcher["b"].kill_asked
    assert r.launcher["a"].stop_asked
    assert not r.launcher["a"].kill_asked
    r.launcher["b"].leave()
    await settle()
    assert not closing.done()
    second = asyncio.create_task(r.lifecycle.close())
    await settle()
    assert r.launcher["a"].kill_asked
    r.launcher["a"].leave()
    await asyncio.gather(closing, second)
    assert r.launcher.is_closed
    await streaming.finish()
    with pytest.raises(Unavailable):
        await r.lifecycle.load("a")
