"""Measures the prompt and generation time of a choice. Times are seconds of a monotonic clock."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from ..messages import Timings


class Clock(Struct):
    start: float = 0.0
    prompt_end: float = 0.0  # 0: not yet
    last_token: float = 0.0
    n_cached: int = 0
    n_prompt: int = 0  # computed prompt tokens, without cached ones
    n_predicted: int = 0
    n_drafted: int = 0
    n_draft_accepted: int = 0

    def begin(self, now: float, n_cached: int) -> None:
        self.start, self.n_cached = now, n_cached

    def prompt_advanced(self, now: float, n_tokens: int) -> None:
        self.prompt_end, self.n_prompt = now, n_tokens - self.n_cached

    def tick(self, now: float, guessed: bool = False) -> None:
        """Record a sampled token. The first one counts as part of the prompt's time."""
        self.last_token = now
        self.n_draft_accepted += guessed
        self.n_predicted += 1
        if self.n_predicted == 1:
            self.prompt_end = now

    def copy(self) -> Clock:
        return replace(self)

    @property
    def prompt_seconds(self) -> float:
        return self.prompt_end - self.start if self.prompt_end else 0.0

    @property
    def predicted_seconds(self) -> float:
        # at least a microsecond, because the prompt ends with the first token: with one token the difference is 0
        return max(1e-6, self.last_token - self.prompt_end) if self.last_token else 0.0

    def timings(self) -> Timings:
        return Timings(
            cache_n=self.n_cached,
            prompt_n=self.n_prompt,
            prompt_ms=1e3 * self.prompt_seconds,
            predicted_n=self.n_predicted,
            predicted_ms=1e3 * self.predicted_seconds,
            draft_n=self.n_drafted,
            draft_n_accepted=self.n_draft_accepted,
        )
