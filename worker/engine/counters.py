"""Totals of the engine's work for metrics. The engine thread updates them; other threads get a copy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import zip_longest

from msgspec import Struct


class Counters(Struct):
    prompt_tokens: int = 0  # computed, not taken from a cache
    prompt_tokens_cached: int = 0
    prompt_seconds: float = 0.0
    predicted_tokens: int = 0
    predicted_steps: int = 0  # without the first token of each answer, which is sampled from the prompt's logits
    predicted_seconds: float = 0.0
    decodes: int = 0
    busy_slots: int = 0  # summed over decodes
    max_tokens: int = 0  # largest number of tokens seen in a slot
    processing: int = 0  # slots now
    deferred: int = 0  # requests waiting for a slot now
    draft_checks: int = 0  # speculative: decodes that verified a draft
    drafted: int = 0
    draft_accepted: int = 0
    accepted_at: tuple[int, ...] = ()  # accepted draft tokens by position in the draft

    def add_prediction(self, n_tokens: int, seconds: float) -> None:
        if n_tokens:
            self.predicted_tokens += n_tokens
            self.predicted_steps += n_tokens - 1
            self.predicted_seconds += seconds

    def add_drafts(self, n_checks: int, n_drafted: int, accepted_at: Sequence[int]) -> None:
        """Add `n_checks` verified drafts. `accepted_at[i]`: in how many of them token i of the draft was accepted."""
        self.draft_checks += n_checks
        self.drafted += n_drafted
        self.draft_accepted += sum(accepted_at)
        self.accepted_at = tuple(a + b for a, b in zip_longest(self.accepted_at, accepted_at, fillvalue=0))

    def copy(self) -> Counters:
        return copy.copy(self)


class Metrics(Struct, frozen=True):
    totals: Counters
    prompt_tokens_per_second: float  # both rates since the previous scrape
    predicted_tokens_per_second: float

    @property
    def busy_slots_per_decode(self) -> float:
        return self.totals.busy_slots / self.totals.decodes if self.totals.decodes else 0.0


class RateMeter:
    """Computes rates from totals. Owned by the event loop."""

    def __init__(self) -> None:
        self._before = Counters()

    def read(self, totals: Counters) -> Metrics:
        before, self._before = self._before, totals
        return Metrics(
            totals,
            _rate(totals.prompt_tokens - before.prompt_tokens, totals.prompt_seconds - before.prompt_seconds),
            _rate(totals.predicted_steps - before.predicted_steps, totals.predicted_seconds - before.predicted_seconds),
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count and seconds > 0 else 0.0
