"""Checkpoints of sliding-window and recurrent memories, which cannot go back to earlier positions.

Decides where to make a checkpoint and which one to use. Pure; the rules are llama-server's. `slot_memory` reads and
loads the states.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

BEFORE_END = 4
"""Number of last tokens of a prompt that are computed in a separate batch, so that a checkpoint can be made before."""


class Checkpoint(Struct, frozen=True, eq=False):
    """The part of a sequence's state that covers the positions `first` … `last`, after `n_tokens` tokens."""

    job: int
    n_tokens: int
    first: int
    last: int
    state: NDArray[np.uint8]


class CheckpointRules(Struct, frozen=True):
    max_number: int
    min_step: int
    n_batch: int
    n_ubatch: int

    def boundaries(
        self, n_prompt: int, user_starts: Sequence[int] = (), checkpoints: Sequence[Checkpoint] = ()
    ) -> tuple[int, ...]:
        """Return the positions at which a batch has to end: near the prompt's end, and at user messages."""
        near_end = (n_prompt - min(self.n_batch, offset) for offset in (BEFORE_END + self.n_ubatch, BEFORE_END))
        turns = (at for at in user_starts if at == user_starts[-1] or self._far(at, checkpoints))
        return (*near_end, *turns)

    def wanted(
        self,
        n_prompt: int,
        n_now: int,
        n_next: int,
        user_starts: Sequence[int] = (),
        checkpoints: Sequence[Checkpoint] = (),
    ) -> bool:
        """Return True if a checkpoint is due before the `n_next` prompt tokens after the first `n_now` are computed.

        It is due near the prompt's end, and where a user message begins, because the user may edit that message.
        """
        if self.max_number <= 0 or n_now <= 0:
            return False
        if n_prompt < n_now + n_next + self.n_ubatch or n_now in user_starts[-1:]:
            return True
        return n_now in user_starts and self._far(n_now, checkpoints)

    def _far(self, at: int, checkpoints: Sequence[Checkpoint]) -> bool:
        return not checkpoints or at > checkpoints[-1].n_tokens + self.min_step

    def with_another(self, checkpoints: Sequence[Checkpoint], new: Checkpoint) -> list[Checkpoint]:
        """Return the list with `new` added. If it is full, drop close ones of older prompts, then the oldest."""
        kept: list[Checkpoint] = []
        n_left = len(checkpoints)
        for checkpoint in checkpoints:
            close = bool(kept) and checkpoint.n_tokens <= kept[-1].n_tokens + self.min_step
            if close and checkpoint.job != new.job and n_left + 1 >= self.max_number:
                n_left -= 1
            else:
                kept.append(checkpoint)
        kept = kept[max(0, len(kept) - self.max_number + 1) :]
        return [*(checkpoint for checkpoint in kept if checkpoint.n_tokens != new.n_tokens), new]


def usable(checkpoints: Sequence[Checkpoint], position: int, needed: int) -> Checkpoint | None:
    """Return the newest checkpoint from which a prompt can continue that matches up to `position`.

    `needed` is the first position that the next token attends to.
    """
    for checkpoint in reversed(checkpoints):
        if checkpoint.last <= position and (checkpoint.first < needed or checkpoint.first == 0):
            return checkpoint
    return None


def position_after(checkpoint: Checkpoint, position: int) -> int:
    """Return the position at which a prompt that matches up to `position` continues after the checkpoint is loaded.

    The caller limits the result to the checkpoint's `n_tokens` tokens.
    """
    return min(position, max(checkpoint.first + 1, checkpoint.last))
