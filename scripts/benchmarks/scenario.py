"""The shape of one measurement: its rows, its rounds, and how its servers are opened for one side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from .client import HttpAnswer
from .servers import ServerError, ServerProgram
from .summary import Row

Round = Callable[[], Awaitable[Mapping[str, float]]]  # measures once; values by row key


@dataclass(frozen=True)
class BenchmarkPlan:
    """What holds for the whole run: where the models lie, and whether a rough answer is enough."""

    models: Path
    quick: bool


@dataclass(frozen=True)
class Scenario:
    """`open` starts what one side needs and yields its round; both sides' servers stand while rounds alternate."""

    name: str
    rows: tuple[Row, ...]
    rounds: int
    open: Callable[[ServerProgram, BenchmarkPlan], AbstractAsyncContextManager[Round]]
    warm: bool = True  # run one round that does not count

    def rounds_for(self, plan: BenchmarkPlan) -> int:
        return min(self.rounds, 2) if plan.quick else self.rounds


def must(answer: HttpAnswer) -> HttpAnswer:
    """An answer that has to be good for the measure to mean anything."""
    if not answer.good:
        raise ServerError(f"answered {answer.status} {answer.fault} {bytes(answer.body[:300])!r}".rstrip())
    return answer
