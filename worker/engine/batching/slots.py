"""A slot: one sequence of the context, the tokens it remembers, and the task it works on, if any.

Owned by the engine thread. Its state moves along `TRANSITIONS` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ..adapters.activation import BASE, Activation
from .checkpoints import Checkpoint
from .jobs import Task
from .media_tokens import MediaToken, lag, n_before
from .prefix import common_prefix
from .scheduler import SlotFacts


class SlotState(Enum):
    IDLE = "idle"
    WAITING = "waiting"  # for what another slot computes: a shared beginning, or the prompt of the first choice
    PROMPT = "prompt"
    GENERATING = "generating"


TRANSITIONS = {
    SlotState.IDLE: {SlotState.WAITING},
    SlotState.WAITING: {SlotState.PROMPT, SlotState.GENERATING, SlotState.IDLE},
    SlotState.PROMPT: {SlotState.GENERATING, SlotState.IDLE},
    SlotState.GENERATING: {SlotState.IDLE},
}


class IllegalSlotTransition(Exception):
    pass


class Leader(NamedTuple):
    """Whom a slot waits for: until the prompt of this job has its first `n` tokens in this slot."""

    slot: int
    job: int
    n: int


@dataclass(slots=True)
class Slot:
    id: int
    n_ctx: int
    state: SlotState = SlotState.IDLE
    tokens: list[int] = field(default_factory=list)  # what the sequence memory holds, in order
    lag: int = 0  # positions fewer than tokens: images with M-RoPE
    media_done: int = 0  # rows of the image after these tokens that are in the sequence memory too
    activation: Activation = BASE  # with which adapters these were computed
    checkpoints: list[Checkpoint] = field(default_factory=list)  # oldest first
    shares_cells: bool = False  # with another sequence, perhaps: then positions must not be moved
    leader: Leader | None = None
    sampled: int = -1  # chosen, not yet computed
    draft: list[int] = field(default_factory=list)  # guesses at what will be chosen after it
    last_turn: int = 0  # number of the batch it last took part in
    task: Task | None = None
    last_task: Task | None = None
    last_used: float = -1.0  # when it was released; below zero: never

    def transition_to(self, state: SlotState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise IllegalSlotTransition(f"slot {self.id}: {self.state.value} to {state.value}")
        self.state = state

    @property
    def idle(self) -> bool:
        return self.state is SlotState.IDLE

    @property
    def is_full(self) -> bool:
        """No position is left for a token after the one that was sampled last."""
        return len(self.tokens) + 1 >= self.n_ctx

    @property
    def position(self) -> int:
        """Of the next token."""
        return len(self.tokens) - self.lag

    def position_after(self, n: int) -> int:
        """Of the token after the first n."""
        return n if not self.lag else n - lag(self.tokens[:n])

    def tokens_before(self, position: int) -> int:
        return position if not self.lag else n_before(self.tokens, position)

    def facts(self, prompt: Sequence[int], activation: Activation) -> SlotFacts:
        n_common = self.common(prompt, activation) if self.idle and self.tokens else 0
        return SlotFacts(self.id, self.idle, len(self.tokens), n_common, self.last_used)

    def common(self, prompt: Sequence[int], activation: Activation) -> int:
        """How many tokens of the prompt it remembers as they would be computed now."""
        return min(common_prefix(self.tokens, prompt), self.activation.common_length(activation))

    def begin(self, task: Task) -> None:
        self.transition_to(SlotState.WAITING)
        self.task = task

    def set_contents(self, tokens: list[int], activation: Activation, checkpoints: Iterable[Checkpoint] = ()) -> None:
        """What its sequence holds now, from the first position on."""
        self.tokens, self.activation, self.checkpoints = tokens, activation, list(checkpoints)
        self.lag, self.media_done = lag(tokens), 0

    def append_media(self, token: MediaToken) -> None:
        self.tokens += [token] * token.n_tokens
        self.lag += token.n_tokens - token.n_pos
        self.media_done = 0

    def truncate(self, n: int) -> None:
        """Only the first n tokens are left."""
        del self.tokens[n:]
        self.lag = lag(self.tokens) if self.lag else 0

    def release(self, now: float) -> Task | None:
        """Back to idle; what it remembers stays for the next prompt that begins alike."""
        self.transition_to(SlotState.IDLE)
        task, self.task, self.leader = self.task, None, None
        if task is not None:
            task.close()
        self.last_task, self.last_used, self.sampled, self.draft = task, now, -1, []
        return task
