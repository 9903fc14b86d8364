"""How many requests may use a model concurrently, how many may wait, and the errors for the others."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lifecycle_tools import router, settle
from llama_corral.common.base.errors import QueueFull, TooManyRequests
from llama_corral.presets.policy import ModelPolicy
from llama_corral.router.placement.admission import Load, free_capacity, queue_refusal
from llama_corral.router.placement.snapshot import PlacementRules
from router_http import gateway
from router_tools import preset, presets, until

counts = st.integers(0, 4)
crowds = st.builds(Load, counts, counts, st.integers(4, 8))
wishes = st.builds(ModelPolicy, max_queue=counts, concurrency=counts, concurrency_refuse=st.booleans())


@given(wishes, crowds, counts)
def test_which_requests_are_refused(policy: ModelPolicy, load: Load, max_queue: int) -> None:
    error = queue_refusal("m", policy, load, max_queue)
    is_crowded = 0 < policy.concurrency <= load.in_use + load.waiting
    has_queue = 0 < policy.max_queue <= load.waiting or 0 < max_queue <= load.waiting_in_all
    expected = TooManyRequests if policy.concurrency_refuse and is_crowded else QueueFull if has_queue else None
    assert (type(error) if error else None) is expected
    assert error is None or error.retry_after


@given(wishes, counts)
def test_concurrency_is_never_exceeded(policy: ModelPolicy, in_use: int) -> None:
    places = free_capacity(policy, in_use)
    assert (places is None) == (not policy.concurrency)
    if places:
        assert in_use + places == policy.concurrency


def one(**policy: Any) -> dict[str, Any]:
    return presets(preset("a", policy=ModelPolicy(**policy)), preset("b"))


async def test_requests_beyond_the_limit_wait_in_order() -> None:
    async with router(presets=one(concurrency=2)) as r:
        clients = [r.client("a") for _ in range(5)]
        await settle()
        r.launcher["a"].ready()
        await settle()
        assert [client.is_served for client in clients] == [True, True, False, False, False]
        async with r.lifecycle.lease("a", touch=False):
            pass  # requests that only read never count
        await clients[3].leave()
        await clients[1].finish()
        await settle()
        assert [client.is_served for client in clients] == [True, True, True, False, False]
        await clients[0].finish()
        await clients[2].finish()
        await settle()
        assert clients[4].is_served
        await clients[4].finish()
        view = r.lifecycle.view("a")
        assert view is not None
        assert (view.leases, view.waiting) == (0, 0)


async def test_capacity_is_granted_to_the_next_if_its_client_disconnects_when_granted() -> None:
    async with router(presets=one(concurrency=1)) as r:
        first, second, third = (r.client("a") for _ in range(3))
        await settle()
        r.launcher["a"].ready()
        await settle()
        first._finish.set()
        await asyncio.sleep(0)
        await second.leave()
        await settle()
        assert third.is_served
        await third.finish()


async def test_requests_that_wait_for_capacity_survive_the_end_of_the_worker() -> None:
    async with router(presets=one(concurrency=1)) as r:
        first, second = r.client("a"), r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        r.launcher["a"].exit(1)
        await settle()
        assert r.status("a") == "loading", "once more, for the second"
        r.launcher["a"].ready()
        await settle()
        assert second.is_served
        await first.finish()
        third = r.client("a")
        await settle()
        assert not third.is_served, "what the first had is not given back twice"
        await r.lifecycle.unload("a")
        r.launcher["a"].leave()
        await settle()
        r.launcher["a"].ready()
        await settle()
        assert third.is_served
        await second.finish()
        await third.finish()


async def test_without_autoload_requests_wait_for_capacity_but_not_for_a_load() -> None:
    async with router(presets=one(concurrency=1), autoload=False) as r:
        await r.up("a")
        first, second, third = (r.client("a") for _ in range(3))
        await settle()
        assert (first.is_served, second.is_served) == (True, False)
        await first.finish()
        await settle()
        assert second.is_served
        r.launcher["a"].exit(1)
        await third.refused()
        assert not r.launcher.alive
        await second.finish()


async def test_a_reload_that_removes_the_limit_serves_waiting_requests() -> None:
    async with router(presets=one(concurrency=1)) as r:
        await r.up("a")
        clients = [r.client("a") for _ in range(3)]
        await settle()
        await r.lifecycle.reload(one(concurrency=0))
        await settle()
        assert all(client.is_served for client in clients)
        for client in clients:
            await client.finish()


async def test_limits_of_the_queue() -> None:
    async with router(presets=one(max_queue=2), rules=PlacementRules(max_queue=3)) as r:
        waiting = [r.client("a"), r.client("a")]
        await settle()
        assert "limit (max-queue)" in (await r.client("a").refused()).message
        waiting.append(r.client("b"))
        await settle()
        refused = await r.client("b").refused()
        assert isinstance(refused, QueueFull)
        assert "(--models-queue)" in refused.message
        await waiting.pop().leave()
        await waiting.pop().leave()
        waiting.append(r.client("a"))
        await settle()
        r.launcher["a"].ready()
        for client in waiting:
            await client.finish()
        await r.client("a").finish()


async def test_refusals_of_too_many_requests_in_each_dialect() -> None:
    strict = preset("m", policy=ModelPolicy(concurrency=1, concurrency_refuse=True))
    patient = preset("n", policy=ModelPolicy(concurrency=1, max_queue=1))
    async with gateway(strict, patient, models_max=2) as g, g.lifecycle.lease("m"), g.lifecycle.lease("n"):
        waiting = asyncio.create_task(g.chat("n"))
        await until(lambda: g.waiting("n"))
        message = "model 'm' has reached its limit of 1 concurrent requests (concurrency)"
        for path, model, status, kind in (
            ("/v1/chat/completions", "m", 429, "rate_limit_error"),
            ("/v1/messages", "m", 429, "rate_limit_error"),
            ("/api/chat", "m", 429, None),
            ("/v1/chat/completions", "n", 503, "unavailable_error"),
            ("/v1/messages", "n", 529, "overloaded_error"),
            ("/api/chat", "n", 503, None),
        ):
            answer = await g.client.post(path, json={"model": model, "stream": True})
            assert (path, answer.status_code) == (path, status)
            assert int(answer.headers["Retry-After"]) > 0
            error = answer.json()["error"]
            assert (error["type"] if kind else None) == kind
            if model == "m":
                assert (error["message"] if kind else error) == message
        waiting.cancel()


async def test_without_autoload_no_request_waits_for_a_draining_model() -> None:
    async with router(presets=one(concurrency=1)) as r:
        first = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        await r.lifecycle.reload(presets(preset("b")))  # `a` stops once its request has ended
        late = r.client("a", autoload=False)
        error = await late.refused()
        assert error.message == "model is not loaded"
        await first.finish()


async def test_concurrency_applies_while_the_model_loads() -> None:
    async with router(presets=one(concurrency=1)) as r:
        first = r.client("a")
        await settle()
        others = [r.client("a", autoload=False) for _ in range(2)]
        await settle()
        assert [client.is_served for client in others] == [True, False], "the worker answers the first with 503"
        await others[0].finish()
        r.launcher["a"].ready()
        await settle()
        assert [first.is_served, others[1].is_served] == [True, False]
        await first.finish()
        await settle()
        assert others[1].is_served
        await others[1].finish()
