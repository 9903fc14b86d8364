"""Prompts that have left their slot, kept in host memory until one like them comes back, by llama-server's rules.

Owned by the engine thread through `slot_memory`, which reads and writes the states; here they are bytes. Knows no slot
and no llama.cpp.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..adapters.activation import Activation
from ..batching.checkpoints import Checkpoint
from ..batching.prefix import common_prefix
from ..batching.scheduler import SlotFacts

log = logging.getLogger("corral.engine")

MIN_KEPT = 0.25
"""An entry of which less would be used is left alone: it may yet serve a prompt that is more like it."""
MOSTLY_KEPT = 0.5
"""A slot that keeps at least this much of its tokens loses little, and is not looked after."""

StateBytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class CachedPrompt:
    tokens: list[int]
    activation: Activation
    checkpoints: tuple[Checkpoint, ...]
    state: StateBytes
    n_bytes: int  # with the checkpoints
    used: float = 0.0  # when its slot was released, on the monotonic clock

    def common(self, tokens: Sequence[int], activation: Activation) -> int:
        return min(common_prefix(self.tokens, tokens), self.activation.common_length(activation))

    @property
    def reusable_length(self) -> int:
        return self.activation.reusable_length(len(self.tokens))

    def covers(self, tokens: Sequence[int], activation: Activation, useful: int) -> bool:
        """Whether it serves every prompt as well as these tokens would, of which only the first `useful` can serve."""
        n = self.common(tokens, activation)
        return n == len(tokens) or (n >= useful and len(self.tokens) <= len(tokens))


def should_search_cache(slot: SlotFacts, n_prompt: int, wanted: int, threshold: float) -> bool:
    """Whether the slot chosen for a prompt is about to lose much, or was not chosen for what it remembers."""
    similar = bool(threshold and n_prompt and slot.n_cached) and slot.n_common / n_prompt > threshold
    if similar:
        return slot.n_common / slot.n_cached < MOSTLY_KEPT
    return wanted < 0 or bool(threshold and slot.n_cached)


class RememberedTokens(Protocol):
    @property
    def tokens(self) -> list[int]: ...

    def common(self, tokens: Sequence[int], activation: Activation) -> int: ...


R = TypeVar("R", bound=RememberedTokens)


def best_of(
    entries: Iterable[R], n_common: int, n_cached: int, prompt: Sequence[int], activation: Activation
) -> R | None:
    """The entry that serves a prompt better than what remembers `n_cached` tokens, `n_common` of them its."""
    best: R | None = None
    best_kept, best_n = (n_common / n_cached if n_cached else -1.0), n_common
    for entry in entries:
        n = entry.common(prompt, activation)
        kept = n / max(1, len(entry.tokens))
        if kept >= MIN_KEPT and kept > best_kept and n > best_n:
            best, best_kept, best_n = entry, kept, n
    return best


class PromptCache:
    """Entries, oldest first."""

    def __init__(self, max_bytes: int | None, n_tokens: int) -> None:
        """`n_tokens` may always be kept; more of them as long as `max_bytes` allow it. None: only tokens count."""
        self._max_bytes = max_bytes
        self._n_tokens = n_tokens
        self.entries: list[CachedPrompt] = []

    @property
    def n_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self.entries)

    def store(
        self,
        tokens: Sequence[int],
        activation: Activation,
        checkpoints: Sequence[Checkpoint],
        n_bytes: int,
        read: Callable[[], StateBytes | None],
        used: float = 0.0,
    ) -> bool:
        """Keeps a state of `n_bytes`, which is read only if it is wanted. What it covers or crowds out is dropped."""
        useful = activation.reusable_length(len(tokens))
        if any(entry.covers(tokens, activation, useful) for entry in self.entries):
            return False
        n_bytes += sum(checkpoint.state.nbytes for checkpoint in checkpoints)
        if self._max_bytes is not None and n_bytes > self._max_bytes:
            log.warning("a prompt of %d MiB does not fit into the prompt cache", n_bytes >> 20)
            return False
        self.entries = [entry for entry in self.entries if entry.common(tokens, activation) < entry.reusable_length]
        while self._max_bytes is not None and self.entries and self.n_bytes + n_bytes > self._max_bytes:
            self.entries.pop(0)
        state = read()
        if state is None:
            return False
        self.entries.append(CachedPrompt(list(tokens), activation, tuple(checkpoints), state, n_bytes, used))
        return True

    def trim(self) -> None:
        """Drops the oldest until tokens are within their limit."""
        limit = self._n_tokens
        if self._max_bytes is not None:
            per_token = max(1.0, self.n_bytes / max(1, self._count()))
            limit = max(limit, int(self._max_bytes / per_token))
        while self.entries and self._count() > limit:
            self.entries.pop(0)

    def take(self, n_common: int, n_cached: int, prompt: Sequence[int], activation: Activation) -> CachedPrompt | None:
        """The entry that serves a prompt better than a slot which remembers `n_cached` tokens, `n_common` of them its.

        Better: more of the prompt is there, and a larger part of what is there is used. It is no longer kept here.
        """
        best = self.best(n_common, n_cached, prompt, activation)
        if best is not None:
            self.entries.remove(best)
        return best

    def best(self, n_common: int, n_cached: int, prompt: Sequence[int], activation: Activation) -> CachedPrompt | None:
        """What `take` would take."""
        return best_of(self.entries, n_common, n_cached, prompt, activation)

    def _count(self) -> int:
        return sum(len(entry.tokens) for entry in self.entries)
