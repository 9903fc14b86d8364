"""Rolls back rejected draft tokens, for every kind of memory. Owned by the engine thread through `speculative`.

Most memories are truncated. A recurrent one has its latest state only: a copy from before the draft is restored, and
the accepted tokens are computed again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..batching.slots import Slot
from ..llama.batch import Batch
from ..llama.context import DECODED, Context


class Rollback:
    def __init__(self, context: Context, longest: int) -> None:
        """Prepare for drafts of at most `longest` tokens."""
        self._context = context
        self._needs_copies = not context.can_truncate
        self._copies: dict[int, tuple[int, NDArray[np.uint8]]] = {}
        self._to_recompute: list[tuple[Slot, int]] = []
        self._batch = Batch(min(longest + 1, context.n_batch)) if self._needs_copies else None

    def prepare(self, slot: Slot) -> bool:
        """Save what a rollback needs, before the sampled token and a draft are computed.

        Returns False if there is no memory for the copy.
        """
        if not self._needs_copies:
            return True
        state = self._context.read_state(slot.id, part=True)
        if state is None:
            return False
        self._copies[slot.id] = len(slot.tokens), state
        return True

    def roll_back(self, slot: Slot) -> bool:
        """Reduce the sequence to the slot's tokens. Returns False if that failed; its contents are then unknown."""
        if not self._needs_copies:
            return self._context.truncate(slot.id, slot.position)
        n, state = self._copies.pop(slot.id)
        if len(slot.tokens) < n:  # the slot has been cleared since
            return True
        if not self._context.write_state(slot.id, state, part=True) or not self._context.truncate(
            slot.id, slot.position_after(n)
        ):
            return False
        self._to_recompute.append((slot, n))
        return True

    def recompute_accepted(self) -> list[Slot]:
        """Compute accepted tokens again where a copy was restored. Returns the slots for which that failed.

        Call this when no output of the last batch is needed any more.
        """
        again, self._to_recompute = self._to_recompute, []
        return [slot for slot, n in again if len(slot.tokens) > n and not self._compute(slot, n)]

    def _compute(self, slot: Slot, n: int) -> bool:
        assert self._batch is not None
        self._batch.clear()
        self._batch.add_run(slot.tokens[n:], slot.position_after(n), slot.id, output=False)
        self._context.clear_abort()
        return self._context.decode(self._batch, 0, self._batch.size) == DECODED
