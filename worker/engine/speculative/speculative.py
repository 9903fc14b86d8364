"""Speculative decoding: computes drafted tokens in one batch and keeps those that the sampler selects as well.

Owned by the engine thread through `core`, which calls `propose` before it plans a step, and `verify` where it samples a
stream's token. Every token is sampled as without drafts, by the request's own chain and grammar; a draft only decides
which rows are computed ahead. Drafters are called in a fixed order, and the first draft is used. Emits no events and
builds no batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from ..batching.decode import DecodedRows, DraftRun, PreparedBatch
from ..batching.jobs import GenerationTask
from ..batching.media_tokens import text_of
from ..batching.slots import Slot, SlotState
from ..llama.context import Context
from .drafter import Drafter, DraftRequest
from .rollback import Rollback
from .simulated import Simulation

log = logging.getLogger("corral.engine")


class Sample(Protocol):
    def __call__(self, slot: Slot, row: int, guess: int | None = None, *, taken: bool = False) -> bool:
        """Sample the slot's next token from this row; if `taken`, accept `guess` instead, without a check.

        Returns True if the token equals `guess`.
        """


class Speculation:
    def __init__(
        self, context: Context, drafters: Sequence[Drafter] = (), simulation: Simulation | None = None
    ) -> None:
        self._drafters = drafters
        self._simulation = simulation
        self._rollback = Rollback(context, max((drafter.n_max for drafter in drafters), default=0))
        self._tasks: dict[int, GenerationTask] = {}  # by slot: the task of its history
        self._histories: dict[int, list[int]] = {}
        self._n_taken: dict[int, int] = {}  # by slot: number of the answer's tokens in its history
        self._makers: dict[int, Drafter] = {}  # by slot: the drafter of its last draft

    @property
    def active(self) -> bool:
        return bool(self._drafters)

    def close(self) -> None:
        for drafter in self._drafters:
            drafter.close()
        self._drafters = ()

    def propose(self, slots: Sequence[Slot], n_prompt_with_streams: int) -> None:
        """Give drafts to streams that can use one. A draft that was not put into a batch is kept for the next one."""
        if not self._drafters:
            return
        for drafter in self._drafters:
            drafter.catch_up(slots, n_prompt_with_streams)
        requests = [request for slot in slots if (request := self._draft_request(slot)) is not None]
        for drafter in self._drafters:
            if not requests:
                return
            drafts = drafter.draft(requests)
            for request, draft in zip(requests, drafts, strict=True):
                if draft and self._rollback.prepare(request.slot):
                    request.slot.draft = draft[: request.max_tokens]
                    self._makers[request.slot.id] = drafter
            requests = [request for request, draft in zip(requests, drafts, strict=True) if not draft]

    def on_computed(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        for drafter in self._drafters:
            drafter.on_computed(prepared, part)

    def verify(self, slot: Slot, row: int, run: DraftRun, sample: Sample) -> tuple[int, bool]:
        """Sample until a token differs from the drafted one.

        Returns the number of accepted tokens, and False if the memory could not be rolled back to the slot's tokens.
        """
        task, n_accepted, n_before = slot.task, 0, len(slot.tokens)
        rows = (row, *range(run.row, run.row + len(run.tokens)))
        for guess in run.tokens:
            if not self._is_accepted(slot, rows[n_accepted], guess, n_accepted, sample):
                break
            n_accepted += 1
            if slot.task is not task:  # the task has ended with this token
                break
            slot.tokens.append(guess)
        else:
            sample(slot, rows[-1])
        self._makers[slot.id].accept(slot, len(run.tokens), n_accepted)
        if len(slot.tokens) == n_before + len(run.tokens):
            return n_accepted, True
        return n_accepted, self._rollback.roll_back(slot)

    def finish_step(self) -> list[Slot]:
        """Finish rollbacks after all rows are sampled. Returns slots whose memory is invalid."""
        return self._rollback.recompute_accepted()

    def on_shifted(self, slot: Slot, begin: int, end: int) -> None:
        slot.draft.clear()
        for drafter in self._drafters:
            drafter.on_shifted(slot, begin, end)

    def _is_accepted(self, slot: Slot, row: int, guess: int, place: int, sample: Sample) -> bool:
        if self._simulation is None:
            return sample(slot, row, guess)
        task = slot.task
        if isinstance(task, GenerationTask) and self._simulation.accepts(slot.id, task, guess, place):
            return sample(slot, row, guess, taken=True)
        sample(slot, row)
        return False

    def _draft_request(self, slot: Slot) -> DraftRequest | None:
        task = slot.task
        if slot.state is not SlotState.GENERATING or not isinstance(task, GenerationTask) or slot.draft:
            return None
        history = self._history(slot, task)
        most = slot.n_ctx - len(slot.tokens) - 2  # keeps one position for the token after the draft
        if task.choice.n_remaining >= 0:
            most = min(most, task.choice.n_remaining - 1)
        return DraftRequest(slot, history, most) if most > 0 else None

    def _history(self, slot: Slot, task: GenerationTask) -> list[int]:
        if self._tasks.get(slot.id) is not task:
            self._tasks[slot.id] = task
            self._histories[slot.id] = [*text_of(list(task.prompt)), *task.choice.tokens]
            self._n_taken[slot.id] = len(task.choice.tokens)
            for drafter in self._drafters:
                drafter.begin(slot, self._histories[slot.id])
        history = self._histories[slot.id]
        history.extend(task.choice.tokens[self._n_taken[slot.id] :])
        self._n_taken[slot.id] = len(task.choice.tokens)
        return history
