"""Defines a scenario: its rows, its number of rounds, and how it starts the servers of one side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from .client import HttpAnswer
from .servers import ServerError, ServerProgram
from .summary import Row

Round = Callable[[], Awaitable[Mapping[str, float]]]  # measures once; returns values by row key


@dataclass(frozen=True)
class BenchmarkPlan:
    """Options of the whole run: the folder of the models, and `quick` for a rough measurement."""

    models: Path
    quick: bool


@dataclass(frozen=True)
class Scenario:
    """A measurement. `open` starts one side's servers and yields its round; both sides run while rounds alternate."""

    name: str
    rows: tuple[Row, ...]
    rounds: int
    open: Callable[[ServerProgram, BenchmarkPlan], AbstractAsyncContextManager[Round]]
    warm: bool = True  # True if one round is run first that is not counted

    def rounds_for(self, plan: BenchmarkPlan) -> int:
        return min(self.rounds, 2) if plan.quick else self.rounds


def must(answer: HttpAnswer) -> HttpAnswer:
    """Return the answer. Raises ServerError if it failed, because the measurement is then invalid."""
    if not answer.good:
        raise ServerError(f"request failed: {answer.status} {answer.fault} {bytes(answer.body[:300])!r}".rstrip())
    return answer
