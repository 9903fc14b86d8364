"""Drafts the continuation of an earlier occurrence of the last tokens. Each slot has one index."""

from __future__ import annotations

from collections.abc import Sequence

from ...batching.slots import Slot
from ...llama.options import NgramSizes
from ..drafter import DraftRequest, HistoryDrafter
from .index import NgramIndex


class NgramSimple(HistoryDrafter):
    """Uses the latest occurrence that is followed by at least as many tokens as were looked up, or by `n_max`."""

    def __init__(self, sizes: NgramSizes) -> None:
        self._sizes = sizes
        self.n_max = sizes.n_draft
        self._indexes: dict[int, NgramIndex] = {}

    def begin(self, slot: Slot, history: list[int]) -> None:
        self._indexes[slot.id] = NgramIndex(self._sizes.n_lookup, min(self._sizes.n_lookup, self.n_max))

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        return [self._draft(request) for request in requests]

    def _draft(self, request: DraftRequest) -> list[int]:
        index, history = self._indexes[request.slot.id], request.history
        index.update(history)
        place = next(index.places(history), None)
        if place is None:
            return []
        begin = place + index.n
        return history[begin : begin + min(self.n_max, request.max_tokens)]

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        pass
