"""A slot: one sequence of the context, the tokens in it, and the task it works on, if any.

Owned by the engine thread. Its state changes only as `TRANSITIONS` allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from msgspec import Struct, field

from ..adapters.activation import BASE, Activation
from .checkpoints import Checkpoint
from .jobs import Task
from .media_tokens import MediaToken, lag, n_before
from .prefix import common_prefix
from .scheduler import SlotFacts


class SlotState(Enum):
    IDLE = "idle"
    WAITING = "waiting"  # until another slot has computed a shared prefix, or the prompt of the first choice
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
    """The slot that another slot waits for, until `slot` has computed the first `n` prompt tokens of the job."""

    slot: int
    job: int
    n: int


class Slot(Struct):
    id: int
    n_ctx: int
    state: SlotState = SlotState.IDLE
    tokens: list[int] = field(default_factory=list)  # the computed tokens of the sequence, in order
    lag: int = 0  # number of tokens minus number of positions, from images with M-RoPE
    media_done: int = 0  # rows of the image after these tokens that are already in the sequence
    activation: Activation = BASE  # the adapters with which the tokens were computed
    checkpoints: list[Checkpoint] = field(default_factory=list)  # oldest first
    shares_cells: bool = False  # True if another sequence may use the same cells: positions must not be shifted
    leader: Leader | None = None
    sampled: int = -1  # sampled token that is not yet computed
    draft: list[int] = field(default_factory=list)  # draft tokens that may follow it
    last_turn: int = 0  # number of the last batch that contained rows of it
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
        """True if there is no position for a token after the sampled one."""
        return len(self.tokens) + 1 >= self.n_ctx

    @property
    def position(self) -> int:
        """The position of the next token."""
        return len(self.tokens) - self.lag

    def position_after(self, n: int) -> int:
        """Return the position of the token after the first n."""
        return n if not self.lag else n - lag(self.tokens[:n])

    def tokens_before(self, position: int) -> int:
        return position if not self.lag else n_before(self.tokens, position)

    def facts(self, prompt: Sequence[int], activation: Activation) -> SlotFacts:
        n_common = self.common(prompt, activation) if self.idle and self.tokens else 0
        return SlotFacts(self.id, self.idle, len(self.tokens), n_common, self.last_used)

    def common(self, prompt: Sequence[int], activation: Activation) -> int:
        """Return the length of the prompt's prefix that is in the slot and was computed with the same adapters."""
        return min(common_prefix(self.tokens, prompt), self.activation.common_length(activation))

    def begin(self, task: Task) -> None:
        self.transition_to(SlotState.WAITING)
        self.task = task

    def set_contents(self, tokens: list[int], activation: Activation, checkpoints: Iterable[Checkpoint] = ()) -> None:
        """Record the contents of the slot's sequence, from the first position on."""
        self.tokens, self.activation, self.checkpoints = tokens, activation, list(checkpoints)
        self.lag, self.media_done = lag(tokens), 0

    def append_media(self, token: MediaToken) -> None:
        self.tokens += [token] * token.n_tokens
        self.lag += token.n_tokens - token.n_pos
        self.media_done = 0

    def truncate(self, n: int) -> None:
        """Remove all but the first n tokens."""
        del self.tokens[n:]
        self.lag = lag(self.tokens) if self.lag else 0

    def release(self, now: float) -> Task | None:
        """Make the slot idle and return its task. Its tokens are kept for later prompts with the same prefix."""
        self.transition_to(SlotState.IDLE)
        task, self.task, self.leader = self.task, None, None
        if task is not None:
            task.close()
        self.last_task, self.last_used, self.sampled, self.draft = task, now, -1, []
        return task
