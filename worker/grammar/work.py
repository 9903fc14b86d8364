"""Count the work of writing one grammar, so that a small schema cannot keep the server busy. Pure.

Alternatives, merged schemas and references can multiply: each may double what is visited below it. So every part of a
conversion takes its work from the grammar's budget.
"""

from __future__ import annotations

from .schema import SchemaError

_MAX_WORK = 10_000_000
"""About a second: one unit takes 0.1 µs, which is the time to write a character of a rule."""

VISIT = 100  # to visit a schema, or to check a value against one
STEP = 10  # from one state of an automaton to the next
COMPARISON = 2  # of two values


class TooMuchWork(SchemaError):
    """The schema is too complex. It is refused even where unsupported schemas are relaxed."""


class Budget:
    """The work that is left for one grammar, in units of 0.1 µs."""

    def __init__(self, work: int = _MAX_WORK) -> None:
        self.spent = 0
        self._all = work

    def take(self, work: int) -> None:
        """Count work that is done, without an error: the next `spend` raises it."""
        self.spent += work

    def spend(self, work: int) -> None:
        """Count work that is to be done. Raises TooMuchWork."""
        self.spent += work
        if self.spent > self._all:
            raise TooMuchWork("JSON schema error at #: the schema is too complex: its grammar would be too large")
