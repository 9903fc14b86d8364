"""Groups: which models may run at the same time, for random snapshots and for clients."""

from __future__ import annotations

import pytest
from hypothesis import given
from lifecycle_tools import router, settle
from llama_corral.common.base.errors import NoCapacity, ServerFault
from llama_corral.presets.policy import ModelGroup, ModelPolicy
from llama_corral.router.placement.groups import blocking_models, excludes, next_in_turn
from llama_corral.router.placement.placement import (
    PlacementSnapshot,
    QueueEntry,
    Resident,
    Retention,
    decide,
    impossibility_reason,
    victims_for_load,
)
from llama_corral.router.placement.queue_order import is_overdue
from llama_corral.router.placement.snapshot import PlacementRules
from llama_corral.router.placement.states import ModelState
from msgspec.structs import replace
from router_tools import preset, presets
from snapshots import carried_out, is_loading, resident, snapshots_with_groups, vulnerable

SWAP = ModelGroup("s")
EXCLUSIVE = ModelGroup("e", swap=False, exclusive=True)
PERSISTENT = ModelGroup("p", swap=False, persistent=True)


@given(snapshots_with_groups())
def test_no_model_starts_while_a_model_it_excludes_runs(snapshot: PlacementSnapshot) -> None:
    model = decide(snapshot).start
    if model is not None:
        assert not blocking_models(snapshot, model)


@given(snapshots_with_groups())
def test_only_idle_models_are_evicted_and_only_if_it_helps(snapshot: PlacementSnapshot) -> None:
    decision = decide(replace(snapshot, models_max=0))
    leaving = {eviction.model for eviction in decision.evict}
    assert leaving <= {r.name for r in vulnerable(snapshot)}
    if leaving:
        head = next_in_turn(snapshot, vulnerable(snapshot))
        assert head is not None
        others = {r.name for r in blocking_models(snapshot, head.model) if r.state is not ModelState.STOPPING}
        assert others <= leaving


@given(snapshots_with_groups())
def test_decisions_about_groups_terminate(snapshot: PlacementSnapshot) -> None:
    for _ in range(3 * len(snapshot.residents) + 3):
        decision = decide(snapshot)
        if not decision:
            return
        snapshot = carried_out(snapshot, decision)
    raise AssertionError("ticks never settle")


@given(snapshots_with_groups())
def test_a_model_that_waits_for_a_group_has_a_blocking_model(snapshot: PlacementSnapshot) -> None:
    snapshot = replace(snapshot, models_max=0, limit=type(snapshot.limit)())
    if not snapshot.queue or decide(snapshot) or is_loading(snapshot) or snapshot.starts_held:
        return
    for entry in snapshot.queue:
        one = resident(snapshot, entry.model)
        if not entry.claimed and one.state.is_down:
            others = [r for r in blocking_models(snapshot, one.name) if r not in vulnerable(snapshot)]
            somebody_else_is_next = next_in_turn(snapshot, vulnerable(snapshot)) != entry
            assert others or somebody_else_is_next


@given(snapshots_with_groups())
def test_no_model_overtakes_an_overdue_one(snapshot: PlacementSnapshot) -> None:
    head = next_in_turn(snapshot, vulnerable(snapshot))
    late = [entry for entry in snapshot.queue if not entry.claimed and is_overdue(snapshot, entry)]
    if late:
        assert head == late[0]


@given(snapshots_with_groups())
def test_an_explicit_load_evicts_only_if_it_helps(snapshot: PlacementSnapshot) -> None:
    for r in snapshot.residents:
        if victims_for_load(snapshot, r.name):
            staying = set(blocking_models(snapshot, r.name)) - {
                one for one in snapshot.residents if one.state is ModelState.STOPPING
            }
            assert {one.name for one in staying} <= set(victims_for_load(snapshot, r.name))


def test_which_groups_exclude_each_other() -> None:
    def one(group: ModelGroup, *, pinned: bool = False) -> Resident:
        return Resident(
            "m", ModelState.LOADED, 0, 0, retention=Retention(pinned=pinned), policy=ModelPolicy(group=group)
        )

    none = ModelGroup()
    assert excludes(one(SWAP), one(SWAP))
    assert not excludes(one(SWAP), one(none))
    assert not excludes(one(none), one(none)), "without a name it is no group"
    assert not excludes(one(EXCLUSIVE), one(EXCLUSIVE)), "its members run together"
    assert excludes(one(EXCLUSIVE), one(none))
    assert excludes(one(EXCLUSIVE), one(SWAP))
    assert not excludes(one(none), one(EXCLUSIVE)), "it may be joined"
    assert not excludes(one(EXCLUSIVE), one(PERSISTENT))
    assert not excludes(one(EXCLUSIVE), one(none, pinned=True))
    assert excludes(one(SWAP), one(SWAP, pinned=True))


def test_a_pinned_member_blocks_the_others() -> None:
    pinned = Resident("a", ModelState.LOADED, 0, 0, retention=Retention(pinned=True), policy=ModelPolicy(group=SWAP))
    other = Resident("b", ModelState.UNLOADED, 0, 0, policy=ModelPolicy(group=SWAP))
    snapshot = PlacementSnapshot((pinned, other), (QueueEntry("b", False),), 0)
    assert [refusal.reason for refusal in decide(snapshot).refuse] == [impossibility_reason(snapshot, "b")]
    assert "'s' runs one model at a time, and a pinned model of the group is running: a" in impossibility_reason(
        snapshot, "b"
    )


def entries(**groups: ModelGroup) -> dict[str, object]:
    return presets(*(preset(name, policy=ModelPolicy(group=group)) for name, group in groups.items()))  # type: ignore[return-value]


async def test_members_of_a_group_swap_and_other_models_are_kept() -> None:
    async with router(presets=entries(a=SWAP, b=SWAP, c=ModelGroup()), models_max=0) as r:
        await r.up("c", "a")
        client = r.client("b")
        await settle()
        assert r.launcher["a"].must_go
        assert not r.launcher["c"].must_go
        assert r.status("b") == "unloaded", "not before the other is gone"
        r.launcher["a"].leave()
        await settle()
        r.launcher["b"].ready()
        await client.finish()


async def test_a_busy_member_blocks_its_group_and_others_overtake() -> None:
    async with router(
        presets=entries(a=SWAP, b=SWAP, c=ModelGroup()), models_max=0, rules=PlacementRules(max_wait=500)
    ) as r:
        first = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        second, third = r.client("b"), r.client("c")
        await settle()
        r.launcher["c"].ready()
        await settle()
        assert (second.is_served, third.is_served) == (False, True)
        with pytest.raises(ServerFault, match="'b' cannot run at the same time as a"):
            await r.lifecycle.load("b")
        await first.finish()
        await settle()
        r.launcher["a"].leave()
        await settle()
        r.launcher["b"].ready()
        await second.finish()
        await third.finish()


async def test_an_exclusive_model_evicts_all_others_but_persistent_ones() -> None:
    async with router(presets=entries(a=EXCLUSIVE, b=ModelGroup(), c=PERSISTENT, d=SWAP), models_max=0) as r:
        await r.up("b", "c", "d")
        client = r.client("a")
        await settle()
        assert [r.launcher[name].must_go for name in "bcd"] == [True, False, True]
        for name in "bd":
            assert not client.is_served
            r.launcher[name].leave()
            await settle()
        r.launcher["a"].ready()
        await client.finish()
        joining = r.client("b")
        await settle()
        assert not r.launcher["a"].must_go
        r.launcher["b"].ready()
        await joining.finish()


async def test_requests_blocked_by_a_pinned_member_are_refused() -> None:
    async with router(presets=entries(a=SWAP, b=SWAP), models_max=0) as r:
        await r.up("a")
        async with r.lifecycle.lease("a", retention=Retention(pinned=True)):
            pass
        assert isinstance(await r.client("b").refused(), NoCapacity)
