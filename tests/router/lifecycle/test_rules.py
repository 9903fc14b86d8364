"""Rules between models, seen from clients: the order of loads, protection from eviction, parallel loads."""

from __future__ import annotations

import asyncio
from typing import Any

from lifecycle_tools import GIB, LeaseClient, LifecycleHarness, SizedBudget, router, settle
from llama_corral.presets.policy import ModelPolicy
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.placement.snapshot import PlacementRules
from memory_workers import InProcessLauncher
from router_tools import preset, presets, until


def named(**policy: ModelPolicy) -> dict[str, Any]:
    return presets(*(preset(name, policy=wish) for name, wish in policy.items()))


def pass_by(r: LifecycleHarness, seconds: float) -> None:
    r.now += seconds
    r.lifecycle.unload_expired()


async def leave(r: LifecycleHarness, name: str) -> None:
    """Let a worker exit that was asked to."""
    r.launcher[name].leave()
    await settle()


# -- priority ----------------------------------------------------------------------------------------------------------


async def test_the_highest_priority_is_next_and_equal_ones_are_in_order_of_arrival() -> None:
    plain, high = ModelPolicy(), ModelPolicy(priority=5)
    async with router(presets=named(a=plain, b=plain, c=plain, d=high)) as r:
        first = r.client("a")
        await settle()
        waiting = {name: r.client(name) for name in "bcd"}
        r.launcher["a"].ready()
        await settle()
        order = ["a"]
        clients = {"a": first, **waiting}
        for _ in range(3):
            await clients[order[-1]].finish()
            await settle()
            await leave(r, order[-1])
            (worker,) = r.launcher.alive
            worker.ready()
            await settle()
            order.append(worker.name)
        assert order == ["a", "d", "b", "c"]
        await clients["c"].finish()


async def test_no_request_waits_forever_behind_higher_priorities() -> None:
    entries = named(a=ModelPolicy(), b=ModelPolicy(), c=ModelPolicy(priority=5))
    async with router(presets=entries, rules=PlacementRules(max_wait=300)) as r:
        first = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        low = r.client("b")
        await settle()
        pass_by(r, 400)
        high = r.client("c")
        await settle()
        await first.finish()
        await settle()
        await leave(r, "a")
        assert r.status("b") == "loading"
        r.launcher["b"].ready()
        await settle()
        await low.finish()
        await settle()
        await leave(r, "b")
        r.launcher["c"].ready()
        await high.finish()


async def test_of_idle_models_the_lowest_priority_is_evicted_first() -> None:
    async with router(presets=named(a=ModelPolicy(priority=1), b=ModelPolicy(), c=ModelPolicy()), models_max=2) as r:
        await r.up("a", "b")
        client = r.client("c")
        await settle()
        assert r.launcher["b"].must_go
        assert not r.launcher["a"].must_go, "though it was used longer ago"
        await leave(r, "b")
        r.launcher["c"].ready()
        await client.finish()


# -- min-stay ----------------------------------------------------------------------------------------------------------


async def test_a_model_is_not_evicted_during_its_minimum_stay() -> None:
    entries = named(a=ModelPolicy(min_stay=100), b=ModelPolicy())
    async with router(presets=entries, rules=PlacementRules(max_wait=1000)) as r:
        await r.up("a")
        waiting = r.client("b")
        await settle()
        again = r.client("a")
        await settle()
        assert again.is_served
        await again.finish()
        pass_by(r, 50)
        assert not r.launcher["a"].must_go
        pass_by(r, 100)
        assert r.launcher["a"].must_go
        await settle()
        await leave(r, "a")
        r.launcher["b"].ready()
        await waiting.finish()


async def test_an_overdue_request_ends_a_minimum_stay() -> None:
    entries = named(a=ModelPolicy(min_stay=10_000), b=ModelPolicy())
    async with router(presets=entries, rules=PlacementRules(max_wait=300)) as r:
        await r.up("a")
        waiting = r.client("b")
        await settle()
        pass_by(r, 200)
        assert not r.launcher["a"].must_go
        pass_by(r, 200)
        await leave(r, "a")
        r.launcher["b"].ready()
        await waiting.finish()


async def test_a_minimum_stay_ends_by_the_timer() -> None:
    """With a real clock."""

    launcher = InProcessLauncher()
    entries = named(a=ModelPolicy(min_stay=0.05), b=ModelPolicy())
    lifecycle = Lifecycle(entries, launcher, models_max=1, autoload=True)
    await lifecycle.load("a")
    launcher["a"].ready()
    client = LeaseClient(lifecycle, "b")
    await until(lambda: launcher["a"].must_go)
    launcher["a"].leave()
    await settle()
    launcher["b"].ready()
    await client.finish()
    closing = asyncio.create_task(lifecycle.close())
    await settle()
    launcher["b"].leave()
    await closing


async def test_a_command_ends_a_minimum_stay() -> None:
    async with router(presets=named(a=ModelPolicy(min_stay=1e6), b=ModelPolicy())) as r:
        await r.up("a")
        await r.lifecycle.unload("a")
        assert r.launcher["a"].must_go


# -- parallel loads ----------------------------------------------------------------------------------------------------


async def test_models_load_in_parallel_if_there_is_room_for_all() -> None:
    async with router("a", "b", "c", "d", models_max=3, rules=PlacementRules(parallel_loads=2)) as r:
        clients = {name: r.client(name) for name in "abcd"}
        await settle()
        assert {worker.name for worker in r.launcher.alive} == {"a", "b"}, "two at once"
        r.launcher["b"].ready()
        await settle()
        assert {worker.name for worker in r.launcher.alive} == {"a", "b", "c"}, "and three places"
        for name in "ac":
            r.launcher[name].ready()
        await settle()
        assert [name for name in "abcd" if not clients[name].is_served] == ["d"]
        await clients["b"].finish()
        await leave(r, "b")
        r.launcher["d"].ready()
        for name in "acd":
            await clients[name].finish()


async def test_parallel_loads_do_not_exceed_the_memory() -> None:
    memory_budget = SizedBudget(5 * GIB, a=2, b=4, c=1)
    async with router(models_max=0, memory_budget=memory_budget, rules=PlacementRules(parallel_loads=3)) as r:
        clients = {name: r.client(name) for name in "abc"}
        await settle()
        assert {worker.name for worker in r.launcher.alive} == {"a"}, "b is next, and no other model starts before it"
        r.launcher["a"].ready()
        await settle()
        await clients["a"].finish()
        await leave(r, "a")
        assert {worker.name for worker in r.launcher.alive} == {"b", "c"}
        for name in "bc":
            r.launcher[name].ready()
            await settle()
            await clients[name].finish()


# -- max-wait ----------------------------------------------------------------------------------------------------------


async def test_a_model_in_constant_use_is_preempted_for_an_overdue_request() -> None:
    async with router(rules=PlacementRules(max_wait=300, preempts=True)) as r:
        first = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        waiting = r.client("b")
        await settle()
        second = r.client("a")
        await settle()
        assert second.is_served, "b has not waited for long"
        pass_by(r, 400)
        third = r.client("a")
        await settle()
        assert not third.is_served
        assert not r.launcher["a"].must_go, "it finishes what it has"
        await first.finish()
        await second.finish()
        await leave(r, "a")
        r.launcher["b"].ready()
        await settle()
        assert waiting.is_served
        await waiting.finish()
        await settle()
        await leave(r, "b")
        r.launcher["a"].ready()
        await third.finish()


async def test_without_max_wait_busy_models_are_not_preempted() -> None:
    async with router() as r:
        first = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        waiting = r.client("b")
        await settle()
        pass_by(r, 1e6)
        second = r.client("a")
        await settle()
        assert second.is_served
        await first.finish()
        await second.finish()
        await settle()
        await leave(r, "a")
        r.launcher["b"].ready()
        await waiting.finish()


async def test_no_busy_model_is_preempted_if_that_does_not_help() -> None:
    """b is pinned and uses the memory that c needs."""

    memory_budget = SizedBudget(6 * GIB, a=2, b=3, c=3)
    entries = presets(preset("a"), preset("b", pin=True), preset("c"))
    async with router(
        presets=entries, models_max=0, memory_budget=memory_budget, rules=PlacementRules(max_wait=300, preempts=True)
    ) as r:
        clients = [r.client("a"), r.client("b")]
        await settle()
        r.launcher["a"].ready()
        await settle()
        r.launcher["b"].ready()
        await settle()
        waiting = r.client("c")
        await settle()
        pass_by(r, 400)
        again = r.client("b")
        await settle()
        assert again.is_served, "a alone is in the way"
        for client in (*clients, again):
            await client.finish()
        await leave(r, "a")
        r.launcher["c"].ready()
        await waiting.finish()


async def test_a_preemption_is_cancelled_when_the_overdue_request_has_left() -> None:
    async with router(rules=PlacementRules(max_wait=300, preempts=True)) as r:
        first = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        waiting = r.client("b")
        await settle()
        pass_by(r, 400)
        second, third = r.client("a"), r.client("a")
        await settle()
        assert not second.is_served
        await third.leave()
        await settle()
        assert not second.is_served, "b still waits"
        await waiting.leave()
        await settle()
        assert second.is_served
        await first.finish()
        await second.finish()
        await settle()
        assert not r.launcher["a"].must_go
