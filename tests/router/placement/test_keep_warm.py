"""Models that are kept warm: loaded without a request if there is room and no request waits."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lifecycle_tools import GIB, LifecycleHarness, SizedBudget, router, settle
from llama_corral.presets.policy import ModelGroup, ModelPolicy
from llama_corral.router.placement.keep_warm import next_check, next_warm
from llama_corral.router.placement.placement import PlacementSnapshot, decide, may_start
from llama_corral.router.placement.snapshot import Retention
from llama_corral.router.placement.states import ModelState
from msgspec.structs import replace
from router_tools import preset, presets
from snapshots import snapshots_with_groups

WARM = ModelPolicy(keep_warm=True)


@st.composite
def warmed(draw: st.DrawFn) -> PlacementSnapshot:
    snapshot = draw(snapshots_with_groups())
    from_when = st.none() | st.integers(0, 8)
    residents = tuple(replace(r, warm_from=draw(from_when)) for r in snapshot.residents)
    return replace(snapshot, residents=residents, queue=draw(st.sampled_from([(), snapshot.queue])))


@given(warmed())
def test_a_warm_load_uses_only_free_memory_and_places(snapshot: PlacementSnapshot) -> None:
    name = next_warm(snapshot)
    if name is None:
        return
    chosen = snapshot.resident(name)
    assert chosen.state.is_down
    assert chosen.warm_from is not None
    assert chosen.warm_from <= snapshot.now
    assert may_start(snapshot, name)
    assert not snapshot.queue
    assert not decide(snapshot)
    assert all(r.state is not ModelState.LOADING for r in snapshot.residents)


@given(warmed())
def test_models_that_fit_are_loaded_the_highest_priority_first(snapshot: PlacementSnapshot) -> None:
    snapshot = replace(snapshot, queue=(), starts_held=False)
    if any(r.state is ModelState.LOADING for r in snapshot.residents):
        return
    down = [r for r in snapshot.residents if r.state.is_down and r.warm_from is not None]
    fitting = [r for r in down if (r.warm_from or 0) <= snapshot.now and may_start(snapshot, r.name)]
    name = next_warm(snapshot)
    assert (name is None) == (not fitting)
    if name is not None:
        assert snapshot.resident(name).policy.priority == max(r.policy.priority for r in fitting)


@given(warmed())
def test_the_next_check_is_at_the_end_of_a_backoff(snapshot: PlacementSnapshot) -> None:
    when = next_check(snapshot)
    snapshot = replace(snapshot, queue=())
    until = snapshot.now + 1e6 if when is None else when - 0.5
    if until > snapshot.now:
        assert next_warm(replace(snapshot, now=until)) == next_warm(snapshot)


def entries(**policy: ModelPolicy) -> dict[str, Any]:
    return presets(*(preset(name, policy=wish) for name, wish in policy.items()))


def running(r: LifecycleHarness) -> set[str]:
    return {worker.name for worker in r.launcher.alive}


async def started(r: LifecycleHarness) -> None:
    await r.lifecycle.start()
    await settle()


async def test_it_is_loaded_at_the_start_and_again_after_an_eviction() -> None:
    async with router(presets=entries(a=WARM, b=ModelPolicy())) as r:
        await started(r)
        r.launcher["a"].ready()
        client = r.client("b")
        await settle()
        r.launcher["a"].leave()
        await settle()
        r.launcher["b"].ready()
        await client.finish()
        await settle()
        assert running(r) == {"b"}, "no model is evicted for it"
        await r.lifecycle.unload("b")
        r.launcher["b"].leave()
        await settle()
        assert running(r) == {"a"}


async def test_waiting_requests_come_before_warm_loads() -> None:
    async with router(presets=entries(a=WARM, b=ModelPolicy(), c=ModelPolicy())) as r:
        first = r.client("b")
        await settle()
        second = r.client("c")
        r.launcher["b"].ready()
        await settle()
        await first.finish()
        await settle()
        r.launcher["b"].leave()
        await settle()
        assert running(r) == {"c"}
        r.launcher["c"].ready()
        await second.finish()


async def test_it_is_loaded_again_after_a_crash_with_backoff() -> None:
    async with router(presets=entries(a=WARM), models_max=0) as r:
        await started(r)
        r.launcher["a"].ready()
        r.launcher["a"].exit(1)
        await settle()
        assert running(r) == {"a"}, "after a first one at once"
        r.launcher["a"].exit(1)
        await settle()
        times = len(r.launcher.workers)
        for _ in range(8):
            r.now += 61
            r.lifecycle.unload_expired()
            await settle()
            (worker,) = r.launcher.alive
            worker.exit(1)
            await settle()
        assert len(r.launcher.workers) <= times + 16


async def test_an_unloaded_model_is_not_kept_warm_until_it_is_requested() -> None:
    async with router(presets=entries(a=WARM), models_max=0) as r:
        await started(r)
        r.launcher["a"].ready()
        await r.lifecycle.unload("a")
        r.launcher["a"].leave()
        await settle()
        assert not running(r)
        client = r.client("a", retention=Retention(ttl=0.0))
        await settle()
        r.launcher["a"].ready()
        await client.finish()
        r.launcher["a"].leave()
        await settle()
        assert not running(r), "keep_alive = 0 sends it away as well"
        await r.up("a")
        r.launcher["a"].exit(1)
        await settle()
        assert running(r) == {"a"}


async def test_a_reload_loads_it_and_missing_memory_prevents_it() -> None:
    memory_budget = SizedBudget(5 * GIB, a=3, b=3)
    async with router(
        presets=entries(a=ModelPolicy(), b=ModelPolicy()), models_max=0, memory_budget=memory_budget
    ) as r:
        await r.up("b")
        await r.lifecycle.reload(entries(a=WARM, b=ModelPolicy()))
        await settle()
        assert running(r) == {"b"}
        await r.lifecycle.unload("b")
        r.launcher["b"].leave()
        await settle()
        assert running(r) == {"a"}


async def test_a_group_prevents_a_warm_load() -> None:
    group = ModelGroup("g")
    wishes = entries(a=ModelPolicy(keep_warm=True, group=group), b=ModelPolicy(group=group))
    async with router(presets=wishes, models_max=0) as r:
        client = r.client("b")
        await settle()
        r.launcher["b"].ready()
        await client.finish()
        await settle()
        assert running(r) == {"b"}
        r.launcher["b"].exit(0)
        await settle()
        assert running(r) == {"a"}
