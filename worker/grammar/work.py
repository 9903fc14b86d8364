"""Count the work of writing one grammar, so that a small schema cannot keep the server busy. Pure.

Alternatives, merged schemas and references can multiply: each may double what is visited below it. So every part of a
conversion takes its work from the grammar's budget.
"""

from __future__ import annotations

from collections.abc import Callable

from .schema import SchemaError

_MAX_WORK = 10_000_000
"""About a second: one unit takes 0.1 µs, which is the time to write a character of a rule."""

_SOON_WORK = 500_000
"""Enough for the schemas that most clients send."""
_LOOK = 100_000
"""The work between two looks at whether the client is still there: a hundredth of a second."""

VISIT = 100  # to visit a schema, or to check a value against one
STEP = 10  # from one state of an automaton to the next
COMPARISON = 2  # of two values


class TooMuchWork(SchemaError):
    """The schema is too complex. It is refused even where unsupported schemas are relaxed."""


class TakesLong(Exception):
    """The work is more than what is done soon; it may be done with a full budget."""


class Budget:
    """The work that is left for one grammar, in units of 0.1 µs."""

    def __init__(
        self, work: int = _MAX_WORK, given_up: Callable[[], bool] | None = None, *, soon: bool = False
    ) -> None:
        """`given_up` returns True once the grammar is not wanted anymore. `soon`: see `expect`."""
        self.spent = 0
        self._all = min(work, _SOON_WORK) if soon else work
        self._given_up, self._soon = given_up, soon
        self._next_look = _LOOK

    def take(self, work: int) -> None:
        """Count work that is done, without an error: the next `spend` raises it."""
        self.spent += work

    def spend(self, work: int) -> None:
        """Count work that is to be done. Raises TooMuchWork, also if the client has disconnected, and TakesLong."""
        self.spent += work
        self.expect(0)
        if self.spent > self._all:
            raise TooMuchWork("JSON schema error at #: the schema is too complex: its grammar would be too large")
        if self._given_up is not None and self.spent >= self._next_look:
            self._next_look = self.spent + _LOOK
            if self._given_up():
                raise TooMuchWork("the client has disconnected")

    def expect(self, at_most: int) -> None:
        """Raise TakesLong if the grammar is wanted soon and this work may be too much for that."""
        if self._soon and self.spent + at_most > self._all:
            raise TakesLong
