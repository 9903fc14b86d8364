"""Explicit loads in random snapshots: they evict once, and then start or are refused, and never before the queue."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from llama_corral.router.placement.placement import (
    Decision,
    LoadCommand,
    PlacementSnapshot,
    decide,
    may_start,
    victims_for_load,
)
from msgspec.structs import replace
from snapshots import snapshots_with_groups


@st.composite
def with_load(draw: st.DrawFn) -> PlacementSnapshot:
    """A snapshot without a queue, in which a model that does not run is to be loaded."""
    snapshot = draw(snapshots_with_groups())
    down = [one.name for one in snapshot.residents if one.state.is_down]
    assume(down)
    load = LoadCommand(draw(st.sampled_from(down)), draw(st.booleans()), draw(st.booleans()))
    return replace(snapshot, queue=(), loads=(load,))


@given(with_load())
def test_it_evicts_then_waits_and_then_starts_or_is_refused(snapshot: PlacementSnapshot) -> None:
    (load,) = snapshot.loads
    decision = decide(snapshot)
    if load.may_evict and victims_for_load(snapshot, load.model):
        assert [eviction.model for eviction in decision.evict] == victims_for_load(snapshot, load.model)
        assert decision.start is None
    elif load.is_waiting or snapshot.starts_held:
        assert not decision
    elif may_start(snapshot, load.model) and not decision.refuse:
        assert decision == Decision(start=load.model, for_command=load.model)
    else:
        (refusal,) = decision.refuse
        assert refusal.model == load.model
        assert refusal.is_final or "try again later" in refusal.reason


@given(snapshots_with_groups())
def test_the_queue_is_decided_first(snapshot: PlacementSnapshot) -> None:
    down = [one.name for one in snapshot.residents if one.state.is_down]
    with_loads = replace(snapshot, loads=tuple(LoadCommand(name) for name in down))
    if decision := decide(snapshot):
        assert decide(with_loads) == decision
