"""Drafts by statistics: how often each token followed the last one to four. The rules are llama-server's.

Three tables are searched in turn: one of the request's own text, one of earlier requests (saved in
`--lookup-cache-dynamic`), and one of a prepared text (`--lookup-cache-static`), which also increases the weights of the
tokens in the other tables.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, field

from ...batching.slots import Slot
from ..drafter import DraftRequest, HistoryDrafter
from .files import Counts, Table, load, merge, save

log = logging.getLogger("corral.engine")

N_MIN, N_MAX, N_STATIC = 1, 4, 2
N_DRAFT = 8
AT_ONCE = 4096
"""Most tokens of a prompt that are counted before one draft, so that no step takes long."""


class Threshold(NamedTuple):
    """The counts that an n-gram needs before its statistics are used, by its length."""

    samples: tuple[int, ...]
    percent: tuple[int, ...]


LAX = Threshold((2, 2, 1, 1), (66, 50, 50, 50))
STRICT = Threshold((4, 3, 2, 2), (75, 66, 66, 66))


class _SlotCounts(Struct):
    history: list[int]
    n_counted: int = 0
    table: Table = field(default_factory=dict)


class NgramCache(HistoryDrafter):
    n_max = N_DRAFT

    def __init__(self, static: Path | None, dynamic: Path | None) -> None:
        """Load the files. Raises LoadError for an invalid file. The dynamic one need not exist yet."""
        self._static = load(static) if static else {}
        self._dynamic_path = dynamic
        self._dynamic = load(dynamic) if dynamic and dynamic.exists() else {}
        self._own: dict[int, _SlotCounts] = {}

    def begin(self, slot: Slot, history: list[int]) -> None:
        self._end(slot.id)
        self._own[slot.id] = _SlotCounts(history)

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        return [self._draft(request) for request in requests]

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        pass

    def close(self) -> None:
        for id in list(self._own):
            self._end(id)
        if self._dynamic_path is not None:
            try:
                save(self._dynamic, self._dynamic_path)
            except OSError as error:
                log.error("--lookup-cache-dynamic %s could not be saved: %s", self._dynamic_path, error.strerror)

    def _end(self, id: int) -> None:
        own = self._own.pop(id, None)
        if own is not None and self._dynamic_path is not None:
            merge(self._dynamic, own.table)

    def _draft(self, request: DraftRequest) -> list[int]:
        own = self._own[request.slot.id]
        _count(own)
        history, drafted = request.history, list[int]()
        if len(history) < N_STATIC:
            return []
        recent = history[-N_MAX:]
        while len(drafted) < min(self.n_max, request.max_tokens):
            token = self._next(own.table, recent)
            if token is None:
                break
            drafted.append(token)
            recent = [*recent, token][-N_MAX:]
        return drafted

    def _next(self, own: Table, recent: list[int]) -> int | None:
        static = self._static.get(tuple(recent[-N_STATIC:]), {})
        token = _likely(own, recent, static, LAX)
        if token is None:
            token = _likely(self._dynamic, recent, static, STRICT)
        return token if token is not None else _most_frequent(static)


def _count(own: _SlotCounts) -> None:
    history, begin = own.history, own.n_counted
    own.n_counted = end = min(len(history), begin + AT_ONCE)
    for place in range(max(begin, 1), end):
        token = history[place]
        for n in range(N_MIN, min(N_MAX, place) + 1):
            counts = own.table.setdefault(tuple(history[place - n : place]), {})
            counts[token] = counts.get(token, 0) + 1


def _likely(table: Table, recent: list[int], static: Counts, threshold: Threshold) -> int | None:
    """Return the most likely token after the longest n-gram with sufficient counts, or None.

    Tokens that the static table has too get more weight.
    """
    for n in range(min(N_MAX, len(recent)), N_MIN - 1, -1):
        counts = table.get(tuple(recent[-n:]))
        if counts is None:
            continue
        token = max(counts, key=lambda token: counts[token] * (100 * static[token] if token in static else 1))
        total = sum(counts.values())
        if total >= threshold.samples[n - 1] and 100 * counts[token] >= threshold.percent[n - 1] * total:
            return token
    return None


def _most_frequent(static: Counts) -> int | None:
    if not static:
        return None
    token, total = max(static, key=lambda token: static[token]), sum(static.values())
    lax = LAX.samples[N_STATIC - 1], LAX.percent[N_STATIC - 1]
    return token if total >= lax[0] and 100 * static[token] >= lax[1] * total else None
