"""Evictions, starts and refusals for random snapshots."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import HealthCheck, assume, given, settings
from llama_corral.router.placement.groups import next_in_turn
from llama_corral.router.placement.memory_amounts import Limit, Space, total
from llama_corral.router.placement.placement import (
    PlacementRules,
    PlacementSnapshot,
    QueueEntry,
    Resident,
    Retention,
    decide,
    expired,
    has_place,
    has_space,
    impossibility_reason,
    next_expiry,
)
from llama_corral.router.placement.queue_order import is_protected, next_check, waiting_in_order
from llama_corral.router.placement.states import ModelState
from msgspec.structs import replace
from snapshots import (
    NAMES,
    carried_out,
    crowded_snapshots,
    idle,
    is_loading,
    resident,
    snapshots,
    snapshots_with_sizes,
    steps,
    taken,
    vulnerable,
)

RARE = settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
"""For tests of situations that few examples have; the others are not counted as examples."""


def running(snapshot: PlacementSnapshot) -> int:
    return sum(resident.state.is_running for resident in snapshot.residents)


@given(snapshots())
def test_only_idle_models_that_are_not_queued_are_evicted(snapshot: PlacementSnapshot) -> None:
    wanted = {entry.model for entry in snapshot.queue}
    for eviction in decide(snapshot).evict:
        chosen = resident(snapshot, eviction.model)
        assert chosen.state in (ModelState.LOADED, ModelState.SLEEPING)
        assert chosen.leases == 0
        assert chosen.name not in wanted
        assert not chosen.retention.pinned
        assert eviction.reason


@given(snapshots())
def test_the_lowest_priority_and_then_the_least_recently_used_is_evicted_first(snapshot: PlacementSnapshot) -> None:
    evicted = [eviction.model for eviction in decide(snapshot).evict]
    kept = [worth(r) for r in vulnerable(snapshot) if r.name not in evicted]
    left = [worth(resident(snapshot, name)) for name in evicted]
    assert left == sorted(left)
    if left and kept:
        assert left[-1] <= min(kept)


def worth(r: Resident) -> tuple[bool, int, float]:
    return (r.retention.kept, r.policy.priority, r.last_used)


@given(snapshots())
def test_as_many_are_evicted_as_places_are_lacking(snapshot: PlacementSnapshot) -> None:
    assume(snapshot.models_max > 0)
    assume(not decide(snapshot).refuse)
    staying = sum(r.state.is_running and r.state is not ModelState.STOPPING for r in snapshot.residents)
    coming = sum(not entry.claimed or resident(snapshot, entry.model).state.is_down for entry in snapshot.queue)
    lacking = max(0, staying + coming - snapshot.models_max) if snapshot.queue else 0
    evicted = len(decide(snapshot).evict)
    assert evicted <= lacking
    if evicted < lacking:
        assert not vulnerable(carried_out(snapshot, decide(snapshot)))


@given(snapshots())
def test_without_a_limit_nothing_is_evicted(snapshot: PlacementSnapshot) -> None:
    for unlimited in (0, -1):
        assert decide(replace(snapshot, models_max=unlimited)).evict == ()


@given(snapshots())
def test_starts_do_not_exceed_the_limit(snapshot: PlacementSnapshot) -> None:
    decision = decide(snapshot)
    if decision.start is not None and snapshot.models_max > 0:
        assert running(carried_out(snapshot, decision)) <= snapshot.models_max


@given(snapshots())
def test_only_the_next_one_starts_and_only_from_down(snapshot: PlacementSnapshot) -> None:
    start = decide(snapshot).start
    if start is not None:
        assert waiting_in_order(snapshot)[0].model == start
        assert resident(snapshot, start).state.is_down
        assert not snapshot.starts_held


@given(snapshots())
def test_nothing_is_decided_for_an_empty_queue(snapshot: PlacementSnapshot) -> None:
    assert not decide(replace(snapshot, queue=()))


@given(snapshots())
def test_decisions_terminate(snapshot: PlacementSnapshot) -> None:
    for _ in range(2 * len(NAMES)):
        decision = decide(snapshot)
        if not decision:
            return
        snapshot = carried_out(snapshot, decision)
    raise AssertionError("ticks never settle")


@RARE
@given(snapshots())
def test_head_that_may_not_start_has_a_reason(snapshot: PlacementSnapshot) -> None:
    """Such a head waits for a reload, for its own exit, or for a place that another model still uses."""
    blocked = [
        (snapshot, decision)
        for snapshot, decision in steps(snapshot)
        if waiting_in_order(snapshot) and not is_loading(snapshot) and not decision.start
    ]
    assume(blocked)
    for snapshot, decision in blocked:
        head = resident(snapshot, waiting_in_order(snapshot)[0].model)
        is_pending = any(entry.claimed and resident(snapshot, entry.model).state.is_down for entry in snapshot.queue)
        assert head.state.is_running or is_pending or not has_place(snapshot)
        if head.state.is_down and not decision.evict:
            one_leaves = any(r.state is ModelState.STOPPING for r in snapshot.residents)
            assert one_leaves or all(is_protected(snapshot, r) for r in idle(snapshot))


@given(snapshots())
def test_priority_is_the_order_until_an_entry_is_overdue(snapshot: PlacementSnapshot) -> None:
    queue = waiting_in_order(snapshot)
    overdue = [entry for entry in queue if snapshot.now - entry.since >= snapshot.rules.max_wait]
    assert queue[: len(overdue)] == overdue
    arrival = [entry for entry in snapshot.queue if not entry.claimed]
    assert overdue == [entry for entry in arrival if entry in overdue], "first come, first served"
    rest = queue[len(overdue) :]
    ranks = [(-resident(snapshot, entry.model).policy.priority, arrival.index(entry)) for entry in rest]
    assert ranks == sorted(ranks)


@given(snapshots())
def test_a_minimum_stay_protects_a_model_unless_an_entry_is_overdue(snapshot: PlacementSnapshot) -> None:
    is_late = any(snapshot.now - entry.since >= snapshot.rules.max_wait for entry in waiting_in_order(snapshot))
    for eviction in decide(snapshot).evict:
        r = resident(snapshot, eviction.model)
        assert is_late or snapshot.now - r.ready_since >= r.policy.min_stay


@given(snapshots())
def test_time_alone_changes_nothing_before_the_next_check(snapshot: PlacementSnapshot) -> None:
    when = next_check(snapshot)
    before = snapshot.now + 1e6 if when is None else when - 0.5
    assert when is None or when > snapshot.now
    if before > snapshot.now:
        assert decide(replace(snapshot, now=before)) == decide(snapshot)


@given(snapshots())
def test_parallel_loads_are_limited(snapshot: PlacementSnapshot) -> None:
    loading = sum(entry.claimed for entry in snapshot.queue)
    if loading and decide(snapshot).start is not None:
        assert loading < snapshot.rules.parallel_loads


def test_several_models_load_in_parallel_if_there_is_room_for_all() -> None:
    sizes = {"a": Space(2), "b": Space(2), "c": Space(2)}
    residents = tuple(Resident(name, ModelState.UNLOADED, 0, 0, space=size) for name, size in sizes.items())
    queue = (QueueEntry("a", True), QueueEntry("b", False), QueueEntry("c", False))
    snapshot = PlacementSnapshot(residents, queue, 2, rules=PlacementRules(parallel_loads=3))
    assert decide(snapshot).start == "b"
    assert decide(replace(snapshot, models_max=1)).start is None, "a is about to take the place"
    assert decide(replace(snapshot, limit=Limit(3))).start is None, "nor is there memory for both"
    unknown = (replace(residents[0], space=Space()), *residents[1:])
    assert decide(replace(snapshot, residents=unknown, limit=Limit(9))).start is None, "the free memory is not known"


@given(snapshots_with_sizes())
def test_busy_models_are_preempted_only_for_an_overdue_entry(snapshot: PlacementSnapshot) -> None:
    decision = decide(snapshot)
    if decision.preempt:
        assert not decision.evict
        assert decision.start is None
        assert snapshot.rules.preempts
        assert any(snapshot.now - entry.since >= snapshot.rules.max_wait for entry in waiting_in_order(snapshot))
        for retirement in decision.preempt:
            r = resident(snapshot, retirement.model)
            assert r.state.is_ready
            assert r.leases
            assert not r.is_pinned


@RARE
@given(snapshots_with_sizes())
def test_an_overdue_entry_waits_for_no_new_requests_of_others(snapshot: PlacementSnapshot) -> None:
    snapshot = replace(snapshot, rules=replace(snapshot.rules, preempts=True), now=100)
    unsettled = (ModelState.STOPPING, ModelState.LOADING)
    waiting = list(without_decision(snapshot))
    assume(waiting)
    for snapshot in waiting:
        head = resident(snapshot, waiting_in_order(snapshot)[0].model)
        others = [r for r in snapshot.residents if r.state in unsettled or r.is_pinned]
        wanted = [entry for entry in snapshot.queue if entry.model != head.name]
        assert others or wanted or head.state.is_running


def without_decision(snapshot: PlacementSnapshot) -> Iterator[PlacementSnapshot]:
    """Yield the snapshots in which the next model waits, although no load delays it."""
    for after, decision in steps(snapshot):
        if waiting_in_order(after) and not decision and not is_loading(after):
            yield after


def test_stopping_models_count_until_they_are_reaped() -> None:
    residents = (Resident("a", ModelState.STOPPING, 0, 1), Resident("b", ModelState.UNLOADED, 0, 0))
    snapshot = PlacementSnapshot(residents, (QueueEntry("b", False),), 1)
    assert not decide(snapshot), "its place is neither free, nor is another needed"


def test_a_claimed_start_keeps_its_place() -> None:
    residents = (
        Resident("a", ModelState.LOADED, 0, 1),
        Resident("b", ModelState.UNLOADED, 0, 0),
        Resident("c", ModelState.UNLOADED, 0, 0),
    )
    snapshot = PlacementSnapshot(residents, (QueueEntry("b", True), QueueEntry("c", False)), 2)
    assert [eviction.model for eviction in decide(snapshot).evict] == ["a"]
    assert not decide(replace(snapshot, queue=(QueueEntry("b", True),)))


def test_the_head_blocks_those_behind_it() -> None:
    residents = (Resident("a", ModelState.STOPPING, 0, 1), Resident("b", ModelState.UNLOADED, 0, 0))
    assert not decide(PlacementSnapshot(residents, (QueueEntry("a", False), QueueEntry("b", False)), 2))


def test_with_all_places_pinned_waiting_models_are_refused() -> None:
    pinned = Retention(pinned=True)
    residents = (
        Resident("a", ModelState.LOADED, 0, 1, retention=pinned),
        Resident("b", ModelState.LOADING, 0, 1, retention=pinned),
        Resident("c", ModelState.UNLOADED, 0, 0),
    )
    snapshot = PlacementSnapshot(residents, (QueueEntry("c", False),), 2)
    (refusal,) = decide(snapshot).refuse
    assert refusal.model == "c"
    assert "2 places" in refusal.reason
    assert "a, b" in refusal.reason
    assert not decide(replace(snapshot, models_max=3)).refuse
    leaving = replace(snapshot, residents=(replace(residents[0], state=ModelState.STOPPING), *residents[1:]))
    assert not decide(leaving).refuse, "its place becomes free"


@given(snapshots())
def test_only_models_that_would_wait_forever_are_refused(snapshot: PlacementSnapshot) -> None:
    pinned = [
        r
        for r in snapshot.residents
        if r.retention.pinned and r.state.is_running and r.state is not ModelState.STOPPING
    ]
    is_full = 0 < snapshot.models_max <= len(pinned)
    refused = {refusal.model for refusal in decide(snapshot).refuse}
    waiting = {entry.model for entry in snapshot.queue if not entry.claimed}
    assert refused == (waiting - {r.name for r in pinned} if is_full else set())
    assert all(bool(impossibility_reason(snapshot, name)) == is_full for name in waiting - {r.name for r in pinned})


@given(snapshots())
def test_idle_models_expire_when_their_ttl_is_over_and_not_before(snapshot: PlacementSnapshot) -> None:
    leaving = {eviction.model for eviction in expired(snapshot)}
    for r in snapshot.residents:
        is_over = r.retention.ttl is not None and r.idle_since + r.retention.ttl <= snapshot.now
        assert (r.name in leaving) == (is_over and r.state.is_ready and not r.leases and not r.retention.pinned)


@given(snapshots())
def test_the_next_expiry_is_the_earliest_one(snapshot: PlacementSnapshot) -> None:
    when = next_expiry(snapshot)
    now = {eviction.model for eviction in expired(snapshot)}
    if when is None:
        assert {eviction.model for eviction in expired(replace(snapshot, now=1e9))} == now
    else:
        assert when > snapshot.now
        assert {eviction.model for eviction in expired(replace(snapshot, now=when))} > now
        assert {eviction.model for eviction in expired(replace(snapshot, now=when - 0.5))} == now


# -- memory ------------------------------------------------------------------------------------------------------------


@given(snapshots_with_sizes())
def test_starts_do_not_exceed_the_memory(snapshot: PlacementSnapshot) -> None:
    """Checks host memory and each device that the model uses."""
    decision = decide(snapshot)
    if decision.start is not None:
        after = carried_out(snapshot, decision)
        assert taken(after).restricted_to(resident(after, decision.start).space).fits(snapshot.limit)


@given(snapshots_with_sizes())
def test_no_model_is_evicted_for_memory_if_it_is_queued_or_it_does_not_help(snapshot: PlacementSnapshot) -> None:
    unlimited = replace(snapshot, models_max=0)
    evicted = {eviction.model for eviction in decide(unlimited).evict}
    assert evicted <= {r.name for r in idle(snapshot)}
    if evicted:
        head = resident(snapshot, waiting_in_order(snapshot)[0].model)
        gone = {r.name for r in snapshot.residents if r.state is ModelState.STOPPING} | evicted | {head.name}
        starting = {entry.model for entry in snapshot.queue if entry.claimed}
        rest = [r for r in snapshot.residents if (r.state.is_running or r.name in starting) and r.name not in gone]
        left = snapshot.limit - total(r.space for r in rest)
        assert head.space_within(left).fits(left)


@given(snapshots_with_sizes())
def test_decisions_about_memory_terminate(snapshot: PlacementSnapshot) -> None:
    for _ in range(3 * len(NAMES)):
        decision = decide(snapshot)
        if not decision:
            return
        snapshot = carried_out(snapshot, decision)
    raise AssertionError("ticks never settle")


@RARE
@given(snapshots_with_sizes())
def test_a_head_without_memory_has_a_reason_to_wait(snapshot: PlacementSnapshot) -> None:
    """It waits for a stopping or busy model or for the system; else it starts, is refused, or causes an eviction."""
    waiting = list(without_decision(snapshot))
    assume(waiting)
    for snapshot in waiting:
        head = resident(snapshot, waiting_in_order(snapshot)[0].model)
        others = [r for r in snapshot.residents if r.name != head.name]
        waits = any(
            r.state in (ModelState.STOPPING, ModelState.LOADING) or r.leases or is_protected(snapshot, r)
            for r in others
        )
        wanted = any(entry.model != head.name for entry in snapshot.queue)
        assert waits or wanted or head.state.is_running


@given(snapshots_with_sizes())
def test_a_model_that_fits_with_the_pinned_ones_is_never_refused(snapshot: PlacementSnapshot) -> None:
    for refusal in decide(snapshot).refuse:
        assert refusal.reason == impossibility_reason(snapshot, refusal.model) != ""


@RARE
@given(crowded_snapshots())
def test_a_kept_model_is_evicted_only_if_the_others_are_not_sufficient(snapshot: PlacementSnapshot) -> None:
    evicted = [resident(snapshot, eviction.model) for eviction in decide(snapshot).evict]
    assume(any(one.retention.kept for one in evicted))
    head = next_in_turn(snapshot, vulnerable(snapshot))
    assert head is not None
    others = {one.name for one in vulnerable(snapshot) if not one.retention.kept}
    residents = tuple(
        replace(one, state=ModelState.UNLOADED) if one.name in others or one.state is ModelState.STOPPING else one
        for one in snapshot.residents
    )
    assert not has_space(replace(snapshot, residents=residents), head.model)


def test_a_kept_model_stays_for_any_number_of_others() -> None:
    """Two smaller models go, although one kept model would be sufficient, and the kept one goes if they are not."""
    wanted = Resident("w", ModelState.UNLOADED, 0, 0, space=Space(6))
    kept = Resident("k", ModelState.LOADED, 0, 0, retention=Retention(kept=True), space=Space(6))

    def evicted(*others: Resident, most: int = 0) -> list[str]:
        snapshot = PlacementSnapshot((wanted, kept, *others), (QueueEntry("w", False),), most, limit=Limit(12), now=10)
        return [eviction.model for eviction in decide(snapshot).evict]

    def other(name: str, size: int, **given: int) -> Resident:
        return Resident(name, ModelState.LOADED, given.get("leases", 0), 9, space=Space(size))

    assert evicted(other("a", 3), other("b", 3)) == ["a", "b"]
    assert evicted(other("a", 3), other("b", 3, leases=1)) == ["k"]
    assert evicted(other("a", 0), most=2) == ["a"], "it was used last, and is not kept"
    assert evicted(most=1) == ["k"]


def test_of_equally_few_victims_the_least_valuable_is_evicted() -> None:
    """The least valuable is idle for long, large and quick to load again."""
    entry, limit = (QueueEntry("d", False),), Limit(10)

    def leaves(**values: Resident) -> str:
        residents = (*values.values(), Resident("d", ModelState.UNLOADED, 0, 0, space=Space(5)))
        (eviction,) = decide(PlacementSnapshot(residents, entry, 0, limit=limit, now=10)).evict
        return eviction.model

    def idle_model(name: str, used: float, size: int = 5, seconds: float = 1.0) -> Resident:
        return Resident(name, ModelState.LOADED, 0, used, space=Space(size), load_seconds=seconds)

    assert leaves(a=idle_model("a", 5), b=idle_model("b", 3)) == "b"
    assert leaves(a=idle_model("a", 5, seconds=1), b=idle_model("b", 3, seconds=9)) == "a"
    assert leaves(a=idle_model("a", 5, size=6), b=idle_model("b", 4.5, size=4)) == "a"
