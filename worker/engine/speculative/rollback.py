"""Back to before a draft, for every kind of memory. Owned by the engine thread through `speculative`.

Most memories are cut. A recurrent one knows its latest state only: a copy from before the draft is put back, and what
was accepted is computed again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..batching.slots import Slot
from ..llama.batch import Batch
from ..llama.context import DECODED, Context


class Rollback:
    def __init__(self, context: Context, longest: int) -> None:
        """`longest`: tokens of a draft."""
        self._context = context
        self._needs_copies = not context.can_truncate
        self._copies: dict[int, tuple[int, NDArray[np.uint8]]] = {}
        self._to_recompute: list[tuple[Slot, int]] = []
        self._batch = Batch(min(longest + 1, context.n_batch)) if self._needs_copies else None

    def prepare(self, slot: Slot) -> bool:
        """Before the sampled token and a draft are computed. False: there is no memory for it."""
        if not self._needs_copies:
            return True
        state = self._context.read_state(slot.id, part=True)
        if state is None:
            return False
        self._copies[slot.id] = len(slot.tokens), state
        return True

    def roll_back(self, slot: Slot) -> bool:
        """To what the slot remembers. False: it failed, and what the sequence holds is unknown."""
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
        """Computes again what was accepted, once no output of the last batch is needed. Returns where that failed."""
        again, self._to_recompute = self._to_recompute, []
        return [slot for slot, n in again if len(slot.tokens) > n and not self._compute(slot, n)]

    def _compute(self, slot: Slot, n: int) -> bool:
        assert self._batch is not None
        self._batch.clear()
        self._batch.add_run(slot.tokens[n:], slot.position_after(n), slot.id, output=False)
        self._context.clear_abort()
        return self._context.decode(self._batch, 0, self._batch.size) == DECODED
