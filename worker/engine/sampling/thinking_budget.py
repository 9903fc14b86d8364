"""How long one answer may think: counts the tokens of its thoughts, and says what is put in when they must end.

Used by `sampler` on the engine thread; knows bytes and ids of tokens, no llama.cpp. The rules are llama-server's, but
marks are found in the text, as whoever reads the answer finds them, and not only when they are split into the same
tokens as by themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto

from ..llama.utf8 import incomplete_tail
from ..messages import Thinking


class BudgetState(Enum):
    OUTSIDE = auto()  # of thoughts: waiting for the mark that opens them
    COUNTING = auto()
    FORCING = auto()


class ThinkingBudget:
    """Each thought of an answer has all of it. `opening`: the tokens at the end of the prompt, which may open one."""

    def __init__(
        self, thinking: Thinking, piece: Callable[[int], bytes], forced: Sequence[int], opening: Iterable[int]
    ) -> None:
        """`forced`: what ends thoughts, the message included."""
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
        """The token that has to come next; None: any."""
        return self._forced[self._n_forced] if self._state is BudgetState.FORCING else None

    def end_thoughts(self) -> None:
        """Now, as if nothing were left; outside of thoughts nothing happens."""
        if self._state is BudgetState.COUNTING:
            self._force()

    def stop_forcing(self) -> None:
        """What is forced cannot be: the answer goes on as it likes."""
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
        """Whether the piece just taken completes it."""
        return mark in self._tail[-len(mark) - len(piece) + 1 :] if piece else False

    def _begin(self) -> None:
        self._state, self._n_left = BudgetState.COUNTING, sys.maxsize if self._limit < 0 else self._limit
        self._forget()

    def _check(self) -> None:
        """A character is completed first."""
        if self._state is BudgetState.COUNTING and self._n_left <= 0 and not incomplete_tail(self._tail):
            self._force()

    def _force(self) -> None:
        self._state, self._n_forced = BudgetState.FORCING, 0
        if not self._forced:
            self.stop_forcing()

    def _forget(self) -> None:
        """What has been said belongs to no mark to come."""
        self._tail = b""
