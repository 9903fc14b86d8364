"""A slot: one sequence of the context, the tokens it remembers, and the task it works on, if any.

Owned by the engine thread. Its state moves along `TRANSITIONS` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .choice import Choice
from .messages import Embedding, Generation, Sink
from .sampling import Sampler
from .scheduler import SlotFacts


class SlotState(Enum):
    IDLE = "idle"
    WAITING = "waiting"  # a further choice, until the first one's prompt is computed
    PROMPT = "prompt"
    GENERATING = "generating"


TRANSITIONS = {
    SlotState.IDLE: {SlotState.WAITING, SlotState.PROMPT},
    SlotState.WAITING: {SlotState.GENERATING, SlotState.IDLE},
    SlotState.PROMPT: {SlotState.GENERATING, SlotState.IDLE},
    SlotState.GENERATING: {SlotState.IDLE},
}


class IllegalMove(Exception):
    pass


class Job:
    """A request from its arrival to its last event. Several slots may work on it, one for each choice."""

    __slots__ = ("arrived", "cancelled", "id", "n_open", "request", "sink")

    def __init__(self, id: int, request: Generation | Embedding, sink: Sink) -> None:
        self.id = id
        self.request = request
        self.sink = sink
        self.cancelled = False  # written by the event loop too; never taken back
        self.n_open = request.n if isinstance(request, Generation) else 1  # choices without their last event
        self.arrived = id

    @property
    def n_choices(self) -> int:
        return self.request.n if isinstance(self.request, Generation) else 1

    @property
    def id_slot(self) -> int:
        return self.request.id_slot if isinstance(self.request, Generation) else -1


@dataclass(slots=True)
class Task:
    """What a slot does for a job: one choice, or the one embedding."""

    job: Job
    choice: Choice | None = None
    sampler: Sampler | None = None
    waited: int = 0  # steps since it last took part in a batch
    parent: int | None = None  # slot whose prompt this choice shares

    @property
    def prompt(self) -> Sequence[int]:
        return self.job.request.tokens


@dataclass(slots=True)
class Slot:
    id: int
    n_ctx: int
    state: SlotState = SlotState.IDLE
    tokens: list[int] = field(default_factory=list)  # what the sequence memory holds, by position
    sampled: int = -1  # chosen, not yet computed
    task: Task | None = None
    last_task: Task | None = None
    last_used: float = -1.0

    def move(self, state: SlotState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise IllegalMove(f"slot {self.id}: {self.state.value} to {state.value}")
        self.state = state

    @property
    def idle(self) -> bool:
        return self.state is SlotState.IDLE

    def facts(self, prompt: Sequence[int]) -> SlotFacts:
        n_common = common_prefix(self.tokens, prompt) if self.idle and self.tokens else 0
        return SlotFacts(self.id, self.idle, len(self.tokens), n_common, self.last_used)

    def begin(self, task: Task) -> None:
        self.move(SlotState.PROMPT if task.parent is None else SlotState.WAITING)
        self.task = task

    def release(self, now: float) -> Task:
        """Back to idle; what it remembers stays for the next prompt that begins alike."""
        self.move(SlotState.IDLE)
        task, self.task = self.task, None
        assert task is not None
        if task.sampler is not None:
            task.sampler.close()
            task.sampler = None
        self.last_task, self.last_used, self.sampled = task, now, -1
        return task


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Compared block by block, since slices compare at C speed."""
    n, block = min(len(a), len(b)), 256
    a, b = list(a), list(b)
    position = 0
    while position < n and a[position : position + block] == b[position : position + block]:
        position += block
    while position < n and a[position] == b[position]:
        position += 1
    return min(position, n)
