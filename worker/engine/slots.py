"""A slot: one sequence of the context, the tokens it remembers, and the task it works on, if any.

Owned by the engine thread. Its state moves along `TRANSITIONS` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .activation import BASE, Activation
from .jobs import GenerationTask, Task
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


@dataclass(slots=True)
class Slot:
    id: int
    n_ctx: int
    state: SlotState = SlotState.IDLE
    tokens: list[int] = field(default_factory=list)  # what the sequence memory holds, by position
    activation: Activation = BASE  # with which adapters these were computed
    sampled: int = -1  # chosen, not yet computed
    last_turn: int = 0  # number of the batch it last took part in
    task: Task | None = None
    last_task: Task | None = None
    last_used: float = -1.0  # when it was released; below zero: never

    def move(self, state: SlotState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise IllegalMove(f"slot {self.id}: {self.state.value} to {state.value}")
        self.state = state

    @property
    def idle(self) -> bool:
        return self.state is SlotState.IDLE

    @property
    def is_full(self) -> bool:
        """No position is left for a token after the one that was sampled last."""
        return len(self.tokens) + 1 >= self.n_ctx

    def facts(self, prompt: Sequence[int], activation: Activation) -> SlotFacts:
        n_common = self.common(prompt, activation) if self.idle and self.tokens else 0
        return SlotFacts(self.id, self.idle, len(self.tokens), n_common, self.last_used)

    def common(self, prompt: Sequence[int], activation: Activation) -> int:
        """How many tokens of the prompt it remembers as they would be computed now."""
        return min(common_prefix(self.tokens, prompt), self.activation.alike(activation))

    def begin(self, task: Task) -> None:
        shares = isinstance(task, GenerationTask) and task.shares_prompt
        self.move(SlotState.WAITING if shares else SlotState.PROMPT)
        self.task = task

    def release(self, now: float) -> Task | None:
        """Back to idle; what it remembers stays for the next prompt that begins alike."""
        self.move(SlotState.IDLE)
        task, self.task = self.task, None
        if task is not None:
            task.close()
        self.last_task, self.last_used, self.sampled = task, now, -1
        return task


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Compared block by block, since slices compare at C speed."""
    n, block, position = min(len(a), len(b)), 256, 0
    while position < n and list(a[position : position + block]) == list(b[position : position + block]):
        position += block
    while position < n and a[position] == b[position]:
        position += 1
    return min(position, n)
