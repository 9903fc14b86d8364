"""Hypothesis strategies for snapshots of arbitrary models and queues, and the effect of a decision on them."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st
from llama_corral.presets.policy import ModelGroup, ModelPolicy
from llama_corral.router.placement.device_split import Need, Split
from llama_corral.router.placement.memory_amounts import Limit, Space, total
from llama_corral.router.placement.placement import (
    Decision,
    PlacementRules,
    PlacementSnapshot,
    QueueEntry,
    Resident,
    Retention,
    decide,
)
from llama_corral.router.placement.queue_order import is_protected
from llama_corral.router.placement.states import ModelState
from msgspec.structs import replace

NAMES = "abcdefgh"
DEVICES = ("CUDA0", "CUDA1")
BOTH = st.just(DEVICES)
STATES = [state for state in ModelState if state not in (ModelState.DOWNLOADING, ModelState.DOWNLOADED)]


@st.composite
def snapshots(draw: st.DrawFn) -> PlacementSnapshot:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    residents = tuple(_resident(draw, name) for name in names)
    queued = draw(st.lists(st.sampled_from(names), unique=True))
    queue = tuple(QueueEntry(name, draw(st.booleans()), draw(st.integers(0, 6))) for name in queued)
    rules = PlacementRules(draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.booleans()))
    most, now = draw(st.integers(-1, 6)), draw(st.integers(0, 6))
    residents = tuple(replace(resident, ready_since=min(resident.ready_since, now)) for resident in residents)
    return PlacementSnapshot(residents, queue, most, draw(st.booleans()), now=now, rules=rules)


def _resident(draw: st.DrawFn, name: str) -> Resident:
    state = draw(st.sampled_from(STATES))
    leases = draw(st.integers(0, 2)) if state.is_running else 0
    retention = Retention(draw(st.none() | st.integers(0, 3)), draw(st.booleans()), draw(st.booleans()))
    policy = ModelPolicy(draw(st.integers(-1, 1)), draw(st.integers(0, 4)))
    used, idle_since, ready_since = (draw(st.integers(0, 3)) for _ in range(3))
    return Resident(name, state, leases, used, idle_since, retention, policy=policy, ready_since=ready_since)


@st.composite
def snapshots_with_sizes(draw: st.DrawFn) -> PlacementSnapshot:
    """Snapshots with models of all sizes and little memory."""
    snapshot = draw(snapshots())
    names = st.sampled_from(DEVICES)
    sizes = st.builds(Space, st.integers(0, 9), st.dictionaries(names, st.integers(0, 9)))
    splits = st.builds(Split, st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), st.integers(0, 1), BOTH)
    needs = st.none() | st.builds(Need, sizes, st.lists(splits, max_size=2).map(tuple))
    limit = draw(st.builds(Limit, st.none() | st.integers(0, 30), st.dictionaries(names, st.integers(0, 30))))
    residents = tuple(
        replace(r, space=draw(sizes), need=draw(needs), load_seconds=draw(st.integers(0, 5)))
        for r in snapshot.residents
    )
    left = limit - total(r.space for r in residents if r.state.is_running)
    residents = tuple(r if r.state.is_running else replace(r, space=r.space_within(left)) for r in residents)
    return replace(snapshot, residents=residents, limit=limit, is_settling=draw(st.booleans()))


def taken(snapshot: PlacementSnapshot) -> Space:
    return total(r.space for r in snapshot.residents if r.state.is_running)


def resident(snapshot: PlacementSnapshot, name: str) -> Resident:
    return next(resident for resident in snapshot.residents if resident.name == name)


def idle(snapshot: PlacementSnapshot) -> list[Resident]:
    """Return the models that can be evicted."""
    wanted = {entry.model for entry in snapshot.queue}
    staying = [r for r in snapshot.residents if r.state.is_ready and not r.leases and not r.retention.pinned]
    return [r for r in staying if r.name not in wanted]


def vulnerable(snapshot: PlacementSnapshot) -> list[Resident]:
    return [resident for resident in idle(snapshot) if not is_protected(snapshot, resident)]


def is_loading(snapshot: PlacementSnapshot) -> bool:
    """Return True if so many models are loading that the next one must wait."""
    claimed = [resident(snapshot, entry.model) for entry in snapshot.queue if entry.claimed]
    is_unknown = any(r.space == Space() for r in claimed) and snapshot.limit != Limit()
    return bool(claimed) and (is_unknown or len(claimed) >= snapshot.rules.parallel_loads)


def carried_out(snapshot: PlacementSnapshot, decision: Decision) -> PlacementSnapshot:
    """Return the snapshot after the lifecycle has carried out the decision."""
    evicted = {eviction.model for eviction in (*decision.evict, *decision.preempt)}
    refused = {refusal.model for refusal in decision.refuse}
    left = snapshot.limit - taken(snapshot)
    residents = tuple(
        replace(resident, state=ModelState.STOPPING)
        if resident.name in evicted
        else replace(resident, state=ModelState.LOADING, space=resident.space_within(left))
        if resident.name == decision.start
        else resident
        for resident in snapshot.residents
    )
    queue = tuple(
        replace(entry, claimed=entry.claimed or entry.model == decision.start)
        for entry in snapshot.queue
        if entry.model not in refused
    )
    return replace(snapshot, residents=residents, queue=queue)


def steps(snapshot: PlacementSnapshot) -> Iterator[tuple[PlacementSnapshot, Decision]]:
    """Yield snapshots with their decisions until nothing is left to decide. All loads succeed, and no request ends."""
    snapshot = replace(snapshot, starts_held=False, is_settling=False)
    while True:
        decision = decide(snapshot)
        yield snapshot, decision
        if decision:
            snapshot = carried_out(snapshot, decision)
        elif any(entry.claimed for entry in snapshot.queue):
            snapshot = _loaded(snapshot)
        else:
            return


def _loaded(snapshot: PlacementSnapshot) -> PlacementSnapshot:
    loading = {entry.model for entry in snapshot.queue if entry.claimed}
    residents = tuple(
        replace(r, state=ModelState.LOADED, leases=1) if r.name in loading else r for r in snapshot.residents
    )
    return replace(snapshot, residents=residents, queue=tuple(entry for entry in snapshot.queue if not entry.claimed))


@st.composite
def crowded_snapshots(draw: st.DrawFn) -> PlacementSnapshot:
    """Snapshots of idle models that use nearly all memory, some of them kept, and of one that is queued."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=3, max_size=6))
    loaded = tuple(
        Resident(name, ModelState.LOADED, 0, used, retention=Retention(kept=kept), space=Space(size))
        for name, size in zip(NAMES, sizes, strict=False)
        for used, kept in [draw(st.tuples(st.integers(0, 3), st.booleans()))]
    )
    wanted = Resident("w", ModelState.UNLOADED, 0, 0, space=Space(draw(st.integers(2, sum(sizes)))))
    limit = Limit(sum(sizes) + draw(st.integers(0, 1)))
    return PlacementSnapshot((*loaded, wanted), (QueueEntry("w", False),), 0, limit=limit, now=10)


@st.composite
def snapshots_with_groups(draw: st.DrawFn) -> PlacementSnapshot:
    snapshot = draw(snapshots_with_sizes())
    kinds = {name: ModelGroup(name, *draw(st.tuples(*[st.booleans()] * 3))) for name in "xyz"}
    groups = st.sampled_from([ModelGroup(), *kinds.values()])
    residents = tuple(replace(r, policy=replace(r.policy, group=draw(groups))) for r in snapshot.residents)
    return replace(snapshot, residents=residents)
