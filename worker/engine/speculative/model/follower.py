"""Tracks the contents of a drafting context's sequences, which follow the slots.

They may be cleared at any time; then only drafts are missing. Owned by a drafter (`draft_model`, `mtp_head`), which
decides what to compute.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from msgspec import Struct, field

from ...batching.jobs import Task
from ...batching.prefix import common_prefix
from ...cache.prefix_sharing import MIN_GAIN
from ...llama.batch import Batch
from ...llama.context import DECODED, NO_ROOM, Context

log = logging.getLogger("corral.engine")


class Follower(Struct):
    """The drafting context's sequence for a slot."""

    tokens: list[int] = field(default_factory=list)
    first: int = 0  # index of the first token that is really computed
    lag: int = 0  # from that token on: index minus position
    task: Task | None = None  # the task that it follows
    gave_up: bool = False  # True if it no longer follows this task
    shares_cells: bool = False  # True if it may share cells with another sequence

    @property
    def position(self) -> int:
        """The position of the next token."""
        return len(self.tokens) - self.lag


class Followers:
    def __init__(self, context: Context, n_slots: int, kind: str) -> None:
        """`kind` is the name of the drafter in the log."""
        self._context, self._kind = context, kind
        self._followers = [Follower() for _ in range(n_slots)]

    def __getitem__(self, id: int) -> Follower:
        return self._followers[id]

    def recall(self, id: int, task: Task, text: Sequence[int]) -> tuple[int, int]:
        """Start on a new task: keep the longest prefix of the text that this or another sequence contains.

        Returns the id of that sequence, and its number of tokens before it was truncated.
        """
        follower, wanted = self._followers[id], list(text)
        follower.task, follower.gave_up = task, False
        n_common = [common_prefix(other.tokens, wanted) for other in self._followers]
        best = max(range(len(n_common)), key=n_common.__getitem__)
        if n_common[best] - n_common[id] < MIN_GAIN:
            best = id
        else:
            source = self._followers[best]
            self._context.copy_sequence(best, id)
            follower.tokens, follower.first, follower.lag = list(source.tokens), source.first, source.lag
            follower.shares_cells = source.shares_cells = True
        n = len(follower.tokens)
        self.truncate(id, n_common[best])
        return best, n

    def truncate(self, id: int, n: int) -> None:
        follower = self._followers[id]
        if n < len(follower.tokens):
            if n <= follower.first:
                self._context.clear_sequence(id)
            elif not self._context.truncate(id, n - follower.lag):
                self._context.clear_sequence(id)
                n = 0
        del follower.tokens[n:]
        if n <= follower.first:
            follower.first = n
            follower.lag = follower.lag if n else 0
        follower.shares_cells &= n > 0

    def restart(self, id: int, text: list[int], position: int) -> None:
        """Clear the sequence; continue after `text`, at `position`, without computing the text."""
        follower = self._followers[id]
        self._context.clear_sequence(id)
        follower.tokens, follower.first, follower.shares_cells = text, len(text), False
        follower.lag = len(text) - position

    def shift(self, id: int, begin: int, end: int) -> bool:
        """Shift as in the slot. If that is not possible, remove the tokens from `begin` on and return False."""
        follower = self._followers[id]
        n = len(follower.tokens)
        if n <= end or follower.first > begin or follower.shares_cells or not self._context.can_shift:
            self.truncate(id, min(n, begin))
            return False
        self._context.shift(id, end, n, begin)
        del follower.tokens[begin:end]
        return True

    def decode(self, batch: Batch, ids: Sequence[int]) -> bool:
        """Compute the batch. If that fails, clear the sequences `ids`, stop following their tasks and return False."""
        while (result := self._context.decode(batch, 0, batch.size)) != DECODED:
            if result == NO_ROOM and self._make_room(ids):
                continue
            log.warning("the %s stops drafting for %d answers: llama_decode returned %d", self._kind, len(ids), result)
            for id in ids:
                self.truncate(id, 0)
                self._followers[id].gave_up = True
            return False
        return True

    def _make_room(self, ids: Sequence[int]) -> bool:
        """Clear one sequence that is not in `ids`; it is computed again in a later step."""
        for id, follower in enumerate(self._followers):
            if id not in ids and follower.tokens:
                self.truncate(id, 0)
                return True
        return False
