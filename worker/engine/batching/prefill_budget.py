"""Computes how many prompt tokens a batch with running streams may contain, so that these are not delayed. Pure."""

from __future__ import annotations

TARGET_STEP_SECONDS = 0.25
"""Target duration of a step with prompts: a longer gap is noticeable to a reader of a stream."""
MIN_PROMPT_TOKENS = 256
"""Minimum number of prompt tokens per step, at any speed. With fewer, a prompt needs many steps with few streams, and
each step reads all weights again: measured on CPUs, all requests lose more by this than the running streams gain."""
_SMOOTHING = 0.3  # weight of the newest measurement


class Pacer:
    """Estimates the speed of prompts and streams from the measured steps."""

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
        elif n_prompt >= MIN_PROMPT_TOKENS // 4:  # with fewer tokens the measured speed is not representative
            streams = min(self._stream_seconds, seconds / 2) if n_streams else 0.0
            newest = (seconds - streams) / n_prompt
            self._seconds_per_prompt_token += _SMOOTHING * (newest - self._seconds_per_prompt_token)
