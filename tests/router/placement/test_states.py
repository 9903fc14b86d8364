"""The table of states: nothing but what it has is possible."""

from __future__ import annotations

from itertools import product

import pytest
from llama_corral.router.placement.states import TRANSITIONS, IllegalMove, State, move


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("old", "new"), list(product(State, State)))
def test_only_the_table_allows_moves(old: State, new: State) -> None:
    if new in TRANSITIONS[old]:
        assert move(old, new) is new
    else:
        with pytest.raises(IllegalMove, match=f"{old.value} to {new.value}"):
            move(old, new)


def test_running_ready_and_down_exclude_each_other() -> None:
    for state in State:
        assert not (state.is_running and state.is_down)
        assert not state.is_ready or state.is_running


def test_every_running_state_can_end_by_an_exit() -> None:
    for state in State:
        if state.is_running:
            assert {State.UNLOADED, State.FAILED} <= set(TRANSITIONS[state])
