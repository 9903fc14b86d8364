"""Limits the reasoning of one answer: counts its tokens, and selects the tokens that are forced to end it.

Used by `sampler` on the engine thread; knows bytes and ids of tokens, not llama.cpp. The rules are llama-server's, but
marks are found in the text, as the answer's parser finds them, even if they are split into other tokens than when they
are tokenized separately.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto

from ..llama.utf8 import incomplete_tail
from ..messages import Thinking


class BudgetState(Enum):
    OUTSIDE = auto()  # not in the reasoning: waiting for the mark that opens it
    COUNTING = auto()
    FORCING = auto()


class ThinkingBudget:
    """The budget of one answer. Each section of reasoning in the answer has the whole budget."""

    def __init__(
        self, thinking: Thinking, piece: Callable[[int], bytes], forced: Sequence[int], opening: Iterable[int]
    ) -> None:
        """Begin with the tokens at the end of the prompt, `opening`, which may open the reasoning.

        `piece` returns the bytes of a token. `forced` are the tokens that end the reasoning, message included.
        """
        self._piece, self._forced, self._limit = piece, forced, thinking.budget
        self._start = thinking.start.encode()
        self._ends = tuple(end.encode() for end in thinking.ends)
        self._tail_size = max(map(len, (self._start, *self._ends, b"....")))
        self._state, self._tail, self._n_left, self._n_forced = BudgetState.OUTSIDE, b"", 0, 0
        if not self._start:
            self._begin()
        for token in opening:
            self._read(token)
        self._check()

    @property
    def forced(self) -> int | None:
        """The token that must be sampled next; None if any token may be."""
        return self._forced[self._n_forced] if self._state is BudgetState.FORCING else None

    def end_thoughts(self) -> None:
        """End the reasoning now, as if the budget were used up. Does nothing outside of the reasoning."""
        if self._state is BudgetState.COUNTING:
            self._force()

    def stop_forcing(self) -> None:
        """Let the answer continue freely, because the forced tokens are complete or not possible."""
        self._state = BudgetState.OUTSIDE
        self._forget()

    def accept(self, token: int) -> None:
        if self._state is BudgetState.FORCING:
            self._n_forced += 1
            if self._n_forced == len(self._forced):
                self.stop_forcing()
        else:
            self._read(token)
            self._check()

    def _read(self, token: int) -> None:
        piece = self._piece(token)
        self._tail = (self._tail + piece)[-self._tail_size - len(piece) :]
        if self._state is BudgetState.OUTSIDE:
            if self._start and self._found(self._start, piece):
                self._begin()
        elif any(self._found(end, piece) for end in self._ends):
            self.stop_forcing()
        else:
            self._n_left -= 1

    def _found(self, mark: bytes, piece: bytes) -> bool:
        """Return True if the last piece completes the mark."""
        return mark in self._tail[-len(mark) - len(piece) + 1 :] if piece else False

    def _begin(self) -> None:
        self._state, self._n_left = BudgetState.COUNTING, sys.maxsize if self._limit < 0 else self._limit
        self._forget()

    def _check(self) -> None:
        """End the reasoning if the budget is used up and the last UTF-8 character is complete."""
        if self._state is BudgetState.COUNTING and self._n_left <= 0 and not incomplete_tail(self._tail):
            self._force()

    def _force(self) -> None:
        self._state, self._n_forced = BudgetState.FORCING, 0
        if not self._forced:
            self.stop_forcing()

    def _forget(self) -> None:
        """Exclude the text so far from the search for marks."""
        self._tail = b""
