"""How many prompt tokens may ride beside running streams, so that their next token is not late. Arithmetic only."""

from __future__ import annotations

TARGET_STEP_SECONDS = 0.25
"""A step with prompts in it should not take longer: the gap a reader of a stream begins to notice."""
MIN_PROMPT_TOKENS = 256
"""Tokens, however slow they are. With less, a prompt would spread over many steps that carry few streams, each reading
all weights again: measured on CPUs, that costs everybody more than it gives the running streams."""
_SMOOTHING = 0.3  # weight of the newest measurement


class Pacer:
    """Learns the speed of prompts and streams from the steps taken."""

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._seconds_per_prompt_token = TARGET_STEP_SECONDS / MIN_PROMPT_TOKENS
        self._stream_seconds = 0.0

    @property
    def n_prompt_with_streams(self) -> int:
        budget = TARGET_STEP_SECONDS - self._stream_seconds
        fitting = int(budget / self._seconds_per_prompt_token)
        return min(max(MIN_PROMPT_TOKENS, fitting), self._n_batch)

    def observe(self, n_streams: int, n_prompt: int, seconds: float) -> None:
        if n_prompt == 0:
            self._stream_seconds += _SMOOTHING * (seconds - self._stream_seconds)
        elif n_prompt >= MIN_PROMPT_TOKENS // 4:  # fewer say little about the speed of many
            streams = min(self._stream_seconds, seconds / 2) if n_streams else 0.0
            newest = (seconds - streams) / n_prompt
            self._seconds_per_prompt_token += _SMOOTHING * (newest - self._seconds_per_prompt_token)
