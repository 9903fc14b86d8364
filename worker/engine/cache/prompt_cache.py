"""The prompt cache in host memory: keeps prompts that were replaced in their slot. The rules are llama-server's.

Owned by the engine thread through `slot_memory`, which reads and writes the states; here they are bytes. Does not use
slots or llama.cpp.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..adapters.activation import Activation
from ..batching.checkpoints import Checkpoint
from ..batching.prefix import common_prefix
from ..batching.scheduler import SlotFacts

log = logging.getLogger("corral.engine")

MIN_KEPT = 0.25
"""An entry is not used if less than this fraction of it matches: a more similar prompt may need it later."""
MOSTLY_KEPT = 0.5
"""The cache is not used for a similar slot that keeps at least this fraction of its tokens: it loses little."""

StateBytes = NDArray[np.uint8]


class CachedPrompt(Struct, frozen=True, eq=False):
    tokens: list[int]
    activation: Activation
    checkpoints: tuple[Checkpoint, ...]
    state: StateBytes
    n_bytes: int  # including the checkpoints
    used: float = 0.0  # when its slot was released, on the monotonic clock

    def common(self, tokens: Sequence[int], activation: Activation) -> int:
        return min(common_prefix(self.tokens, tokens), self.activation.common_length(activation))

    @property
    def reusable_length(self) -> int:
        return self.activation.reusable_length(len(self.tokens))

    def covers(self, tokens: Sequence[int], activation: Activation, useful: int) -> bool:
        """Return True if these tokens, of which only the first `useful` can be reused, add nothing to this entry."""
        n = self.common(tokens, activation)
        return n == len(tokens) or (n >= useful and len(self.tokens) <= len(tokens))


def should_search_cache(slot: SlotFacts, n_prompt: int, wanted: int, threshold: float) -> bool:
    """Return True if the slot chosen for a prompt would lose many tokens, or was not chosen for its cached tokens.

    `wanted` is the slot id that the request names, `threshold` the option --slot-prompt-similarity.
    """
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
    """Return the best entry for a prompt, if it beats a slot with `n_cached` tokens, `n_common` of them in common.

    An entry is better if more of the prompt matches and a larger fraction of the entry matches.
    """
    best: R | None = None
    best_kept, best_n = (n_common / n_cached if n_cached else -1.0), n_common
    for entry in entries:
        n = entry.common(prompt, activation)
        kept = n / max(1, len(entry.tokens))
        if kept >= MIN_KEPT and kept > best_kept and n > best_n:
            best, best_kept, best_n = entry, kept, n
    return best


class PromptCache:
    """The cached prompts, oldest first."""

    def __init__(self, max_bytes: int | None, n_tokens: int) -> None:
        """`n_tokens` tokens may always be kept, more if `max_bytes` allows it. `max_bytes` None: no limit in bytes."""
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
        """Add a prompt with a state of `n_bytes`. Return False if it was not added.

        `read` is called only if the prompt is added. Entries that are prefixes of it are dropped, and the oldest ones
        until it fits.
        """
        useful = activation.reusable_length(len(tokens))
        if any(entry.covers(tokens, activation, useful) for entry in self.entries):
            return False
        n_bytes += sum(checkpoint.state.nbytes for checkpoint in checkpoints)
        if self._max_bytes is not None and n_bytes > self._max_bytes:
            log.warning("a prompt is not cached in memory: its %d MiB exceed --cache-ram", n_bytes >> 20)
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
        """Drop the oldest entries until the number of tokens is within its limit."""
        limit = self._n_tokens
        if self._max_bytes is not None:
            per_token = max(1.0, self.n_bytes / max(1, self._count()))
            limit = max(limit, int(self._max_bytes / per_token))
        while self.entries and self._count() > limit:
            self.entries.pop(0)

    def take(self, n_common: int, n_cached: int, prompt: Sequence[int], activation: Activation) -> CachedPrompt | None:
        """Remove and return the entry that `best` returns."""
        best = self.best(n_common, n_cached, prompt, activation)
        if best is not None:
            self.entries.remove(best)
        return best

    def best(self, n_common: int, n_cached: int, prompt: Sequence[int], activation: Activation) -> CachedPrompt | None:
        """Return the best entry for a prompt, see `best_of`."""
        return best_of(self.entries, n_common, n_cached, prompt, activation)

    def _count(self) -> int:
        return sum(len(entry.tokens) for entry in self.entries)
