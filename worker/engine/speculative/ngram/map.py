"""Drafts from n-grams (keys), with a record of how often they occurred, their continuations and accepted drafts.

`ngram-map-k` drafts the last continuation; `ngram-map-k4v` records up to four continuations of a key and drafts one
only if it is at least twice as frequent as the others together. A key's draft is never longer than the accepted part of
its last one. The rules are llama-server's. Each slot has one record.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from ...batching.slots import Slot
from ...llama.options import NgramSizes
from ..drafter import DraftRequest, HistoryDrafter
from .index import NgramIndex

MAX_VALUES = 4
CLEAR_MAJORITY = 2


class Value(Struct):
    """A continuation of a key."""

    place: int  # position in the history at which it begins
    n_promised: int
    count: int = 0


class Key(Struct):
    hits: int = 0
    counted_to: int = -1  # the latest position whose continuation is counted
    values: list[Value] = field(default_factory=list)


class _SlotRecord:
    def __init__(self, sizes: NgramSizes, several: bool) -> None:
        self._sizes, self._several = sizes, several
        self._index = NgramIndex(sizes.n_lookup, sizes.n_draft)
        self._keys: dict[tuple[int, ...], Key] = {}
        self.used: Value | None = None  # by the last draft

    def draft(self, history: list[int]) -> list[int]:
        self.used = None
        self._index.update(history)
        places = self._index.places(history)
        latest = next(places, None)
        if latest is None:
            return []
        key = self._keys.setdefault(tuple(history[-self._sizes.n_lookup :]), Key())
        key.hits += 1
        if self._several:
            uncounted = [latest]
            for place in places:
                if place <= key.counted_to:
                    break
                uncounted.append(place)
            self._count(key, history, [place for place in reversed(uncounted) if place > key.counted_to])
            key.counted_to = latest
        else:
            self._point_to(key, latest)
        self.used = self._choice(key)
        if self.used is None:
            return []
        return history[self.used.place : self.used.place + self.used.n_promised]

    def _point_to(self, key: Key, place: int) -> None:
        begin = place + self._sizes.n_lookup
        if key.values:
            key.values[0].place = begin
        else:
            key.values.append(Value(begin, self._sizes.n_draft))

    def _count(self, key: Key, history: list[int], places: list[int]) -> None:
        n = self._sizes.n_draft
        for place in places:
            begin = place + self._sizes.n_lookup
            text = history[begin : begin + n]
            value = next((value for value in key.values if history[value.place : value.place + n] == text), None)
            if value is None and len(key.values) < MAX_VALUES:
                value = Value(begin, n)
                key.values.append(value)
            if value is not None:
                value.count += 1

    def _choice(self, key: Key) -> Value | None:
        if key.hits < self._sizes.min_hits:
            return None
        if not self._several:
            return key.values[0]
        best = max(key.values, key=lambda value: value.count)
        n_others = sum(value.count for value in key.values) - best.count
        return best if best.count >= CLEAR_MAJORITY * n_others else None


class NgramMap(HistoryDrafter):
    def __init__(self, sizes: NgramSizes, *, several: bool) -> None:
        """Record several continuations of a key if `several`, else only the last one."""
        self._sizes, self._several = sizes, several
        self.n_max = sizes.n_draft
        self._records: dict[int, _SlotRecord] = {}

    def begin(self, slot: Slot, history: list[int]) -> None:
        self._records[slot.id] = _SlotRecord(self._sizes, self._several)

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        return [self._records[request.slot.id].draft(request.history)[: request.max_tokens] for request in requests]

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        used = self._records[slot.id].used
        if used is not None:
            used.n_promised = n_accepted if n_accepted < n_drafted else max(used.n_promised, n_accepted)
