"""The number of prompt tokens in batches with streams: enough for progress, but no long gaps in the streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.batching.prefill_budget import MIN_PROMPT_TOKENS, TARGET_STEP_SECONDS, Pacer

observations = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3000), st.floats(1e-6, 100)), max_size=40)


@given(st.integers(1, 4096), observations)
def test_the_budget_stays_within_bounds(n_batch: int, seen: list[tuple[int, int, float]]) -> None:
    pacer = Pacer(n_batch)
    for n_streams, n_prompt, seconds in seen:
        pacer.observe(n_streams, n_prompt, seconds)
        assert min(MIN_PROMPT_TOKENS, n_batch) <= pacer.n_prompt_with_streams <= n_batch


def test_the_initial_budget() -> None:
    assert Pacer(2048).n_prompt_with_streams == MIN_PROMPT_TOKENS


@pytest.mark.parametrize("per_token", [1e-5, 2e-4, 1e-3, 5e-3])
def test_steps_converge_to_the_target_time(per_token: float) -> None:
    pacer = Pacer(2048)
    seconds = 0.0
    for _ in range(60):
        n = pacer.n_prompt_with_streams
        seconds = 0.01 + n * per_token
        pacer.observe(4, n, seconds)
        pacer.observe(4, 0, 0.01)
    assert seconds <= TARGET_STEP_SECONDS * 1.3 or n == MIN_PROMPT_TOKENS
    assert seconds >= TARGET_STEP_SECONDS / 2 or n == 2048
