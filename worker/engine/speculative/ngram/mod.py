"""Drafts from one large table that all slots fill: it maps the hash of n tokens to the token that followed them.

The table is lossy, has a fixed size and is kept across requests, so that later answers use the text of earlier ones.
The rules are llama-server's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from ...batching.slots import Slot
from ..drafter import DraftRequest, HistoryDrafter
from .index import Rolling, hashes

log = logging.getLogger("corral.engine")

SIZE = 4 << 20
"""Number of entries of four bytes each."""
MAX_USED = 0.25
"""Above this share of used entries most hits are hash collisions, and the table is cleared."""
CHUNK = 32
"""Number of new tokens of an answer that are recorded in one go."""
POOR, MAX_POOR = 0.25, 5
"""The table is cleared after MAX_POOR drafts in a row of which less than the share POOR was accepted."""
_SHORT = 16
_EMPTY = -1


class _Progress(Struct):
    learned_to: int = 0
    n_poor: int = 0


class NgramMod(HistoryDrafter):
    def __init__(self, n_lookup: int, n_min: int, n_max: int) -> None:
        self._n, self._n_min, self.n_max = n_lookup, n_min, n_max
        self._table = np.full(SIZE, _EMPTY, np.int32)
        self._n_used = 0
        self._progress: dict[int, _Progress] = {}
        if n_lookup < _SHORT:
            log.warning("--spec-ngram-mod-n-match %d: drafts from so few tokens are often wrong", n_lookup)

    def begin(self, slot: Slot, history: list[int]) -> None:
        poor = self._progress[slot.id].n_poor if slot.id in self._progress else 0
        self._progress[slot.id] = progress = _Progress(n_poor=poor)
        self._learn(progress, history)
        if self._n_used > MAX_USED * SIZE:
            log.info("the n-gram table was cleared: more than %d %% of it was used", 100 * MAX_USED)
            self._reset()

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        return [self._draft(request) for request in requests]

    def _draft(self, request: DraftRequest) -> list[int]:
        n, history = self._n, request.history
        if len(history) < n:
            return []
        progress = self._progress[request.slot.id]
        if len(history) > progress.learned_to + n + CHUNK:
            self._learn(progress, history)
        window, drafted = history[-n:], list[int]()
        rolling = Rolling(window)
        while len(drafted) < self.n_max:
            token = int(self._table[rolling.value % SIZE])
            if token == _EMPTY:
                break
            rolling.move(window[len(drafted)], token)
            window.append(token)
            drafted.append(token)
        return drafted[: request.max_tokens] if len(drafted) >= self._n_min else []

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        progress = self._progress[slot.id]
        progress.n_poor = progress.n_poor + 1 if n_accepted < POOR * n_drafted else 0
        if progress.n_poor >= MAX_POOR:
            self._reset()
            progress.n_poor = progress.learned_to = 0

    def _learn(self, progress: _Progress, history: list[int]) -> None:
        """Record the part of the history that has not been recorded yet."""
        begin, end = progress.learned_to, len(history) - self._n
        if end <= begin:
            return
        tokens = np.array(history[begin:], np.uint64)
        places = hashes(tokens[:-1], self._n) % np.uint64(SIZE)
        self._n_used += np.unique(places[self._table[places] == _EMPTY]).size
        self._table[places] = tokens[self._n :]
        progress.learned_to = end

    def _reset(self) -> None:
        self._table.fill(_EMPTY)
        self._n_used = 0
