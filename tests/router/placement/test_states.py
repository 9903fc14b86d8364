"""The table of states: only its transitions are possible."""

from __future__ import annotations

from itertools import product

import pytest
from llama_corral.router.placement.states import TRANSITIONS, IllegalModelTransition, ModelState, transition


def test_every_state_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(ModelState)


@pytest.mark.parametrize(("old", "new"), list(product(ModelState, ModelState)))
def test_only_transitions_of_the_table_are_allowed(old: ModelState, new: ModelState) -> None:
    if new in TRANSITIONS[old]:
        assert transition(old, new) is new
    else:
        with pytest.raises(IllegalModelTransition, match=f"{old.value} to {new.value}"):
            transition(old, new)


def test_running_ready_and_down_exclude_each_other() -> None:
    for state in ModelState:
        assert not (state.is_running and state.is_down)
        assert not state.is_ready or state.is_running


def test_every_running_state_can_end_by_an_exit() -> None:
    for state in ModelState:
        if state.is_running:
            assert {ModelState.UNLOADED, ModelState.FAILED} <= set(TRANSITIONS[state])
