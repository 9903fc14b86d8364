"""Drafts with a second, smaller model that has the same tokens. Owned by the engine thread through `speculative`.

Its context follows what the slots have computed: of a new prompt it keeps the common prefix, or copies it from the
sequence of another slot, and computes the rest between the main model's batches. If its sequences are cleared, only
drafts are missing. Streams that draft share its batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from ...batching.decode import DecodedRows, PreparedBatch
from ...batching.jobs import GenerationTask
from ...batching.prefix import common_run
from ...batching.slots import Slot, SlotState
from ...llama.batch import Batch
from ...llama.context import Context
from ...llama.model import Model
from ..drafter import DraftRequest
from .follower import Followers

N_CANDIDATES = 10
"""A draft token's probability is calculated among this number of most likely tokens, as in llama-server."""


class _ModelDraft(Struct):
    slot: Slot
    max_tokens: int
    coming: list[int]  # tokens to be computed next
    row: int = -1  # batch row of the last of these tokens
    drafted: list[int] = field(default_factory=list)


class DraftModel:
    def __init__(self, model: Model, context: Context, n_vocab: int, n_max: int, n_min: int, p_min: float) -> None:
        """Take ownership of the draft's model and context. `n_vocab` is that of the main model."""
        self._model, self._context = model, context
        self._n_vocab = min(n_vocab, context.n_vocab)
        self.n_max, self._n_min, self._p_min = n_max, n_min, p_min
        self._batch = Batch(context.n_batch)
        n_slots = model.options.n_slots
        self._following = Followers(context, n_slots, "draft model")
        self._n_agreed = [0] * n_slots  # by slot: the known common prefix of the draft's sequence and the slot's tokens
        self._n_nearly = min(n_max + 1, context.n_batch // n_slots - 1)
        """The most missing tokens that are computed together with the first one of a draft."""

    def close(self) -> None:
        self._context.close()
        self._model.close()

    def begin(self, slot: Slot, history: list[int]) -> None:
        pass

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        pass

    def on_computed(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        pass

    # -- follow --------------------------------------------------------------------------------------------------------

    def catch_up(self, slots: Sequence[Slot], n_prompt_with_streams: int) -> None:
        """Compute what the slots have computed, in parts while streams run."""
        streams = any(slot.state is SlotState.GENERATING for slot in slots)
        room = min(self._context.n_batch, n_prompt_with_streams) if streams else self._context.n_batch
        self._batch.clear()
        runs: list[tuple[int, list[int]]] = []
        for slot in slots:
            if room and self._can_catch_up(slot):
                run = self._stretch(slot, room)
                room -= len(run)
                if run:
                    self._batch.add_run(run, len(self._following[slot.id].tokens), slot.id, output=False)
                    runs.append((slot.id, run))
        if runs and self._following.decode(self._batch, [id for id, _ in runs]):
            for id, run in runs:
                self._following[id].tokens += run

    def _can_catch_up(self, slot: Slot) -> bool:
        follower = self._following[slot.id]
        if not isinstance(slot.task, GenerationTask) or slot.state not in (SlotState.PROMPT, SlotState.GENERATING):
            return False
        if follower.task is not slot.task:
            self._recall(slot.id, slot.task)
        return not follower.gave_up

    def _stretch(self, slot: Slot, room: int) -> list[int]:
        """Truncate the sequence to its common prefix with the slot; return the tokens to compute next."""
        follower, generating = self._following[slot.id], slot.state is SlotState.GENERATING
        n = self._n_agreed[slot.id]
        n += common_run(follower.tokens, n, slot.tokens, n)
        if generating or n < len(slot.tokens):  # in a prompt it may be ahead of the slot
            self._truncate(slot.id, n)
        self._n_agreed[slot.id] = min(n, len(follower.tokens))
        begin = len(follower.tokens)
        if generating and len(slot.tokens) - begin <= self._n_nearly:
            return []
        run = slot.tokens[begin : begin + room]
        if not self._model.vocab.contains(run):
            follower.gave_up = True
            return []
        return run

    def _recall(self, id: int, task: GenerationTask) -> None:
        """Start on a new prompt: keep its longest prefix that this or another sequence contains."""
        self._following.recall(id, task, task.prompt)
        self._n_agreed[id] = 0

    def _truncate(self, id: int, n: int) -> None:
        self._following.truncate(id, n)
        self._n_agreed[id] = min(self._n_agreed[id], len(self._following[id].tokens))

    def on_shifted(self, slot: Slot, begin: int, end: int) -> None:
        """Shift this context too, if it can be shifted; if not, the later tokens are computed again."""
        self._truncate(slot.id, self._n_agreed[slot.id])
        self._following.shift(slot.id, begin, end)
        self._n_agreed[slot.id] = len(self._following[slot.id].tokens)

    # -- draft ---------------------------------------------------------------------------------------------------------

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        attempts = [self._attempt(request) for request in requests]
        ahead = [attempt for attempt in attempts if attempt.coming]
        copies = {} if self._context.can_truncate else {a.slot.id: self._copy(a.slot.id) for a in ahead}
        while ahead:
            self._batch.clear()
            for attempt in ahead:
                self._add(attempt)
            if not self._following.decode(self._batch, [attempt.slot.id for attempt in ahead]):
                break
            for attempt in ahead:
                self._following[attempt.slot.id].tokens += attempt.coming
            ahead = [attempt for attempt in ahead if self._take(attempt)]
        for id, (n, state) in copies.items():
            self._put_back(id, n, state)
        return [a.drafted if len(a.drafted) >= self._n_min else [] for a in attempts]

    def _attempt(self, request: DraftRequest) -> _ModelDraft:
        slot = request.slot
        follower, most = self._following[slot.id], min(request.max_tokens, self.n_max)
        attempt = _ModelDraft(slot, most, [])
        if follower.task is slot.task and not follower.gave_up and most > 0:
            coming = [*slot.tokens[len(follower.tokens) :], slot.sampled]
            if len(coming) - 1 <= self._n_nearly and self._model.vocab.contains(coming):
                attempt.coming = coming
        return attempt

    def _add(self, attempt: _ModelDraft) -> None:
        id = attempt.slot.id
        self._batch.add_run(attempt.coming, len(self._following[id].tokens), id, output=False)
        attempt.row = self._batch.size - 1
        self._batch.want_output(attempt.row)

    def _take(self, attempt: _ModelDraft) -> bool:
        """Add the most likely token to the draft. Return False if the draft ends here."""
        logits = self._context.logits(attempt.row)[: self._n_vocab]
        token = most_likely(logits, self._p_min)
        if token is None:
            return False
        attempt.drafted.append(token)
        attempt.coming = [token]
        return len(attempt.drafted) < attempt.max_tokens

    def _copy(self, id: int) -> tuple[int, NDArray[np.uint8] | None]:
        return len(self._following[id].tokens), self._context.read_state(id, part=True)

    def _put_back(self, id: int, n: int, state: NDArray[np.uint8] | None) -> None:
        """Restore the state from before the draft: a recurrent memory cannot be truncated."""
        if state is None or not self._context.write_state(id, state, part=True):
            self._context.clear_sequence(id)
            n = 0
        self._truncate(id, n)


def most_likely(logits: NDArray[np.float32], p_min: float) -> int | None:
    """Return the most likely token, or None if its probability is below `p_min`. `logits` has the shape (n_vocab,)."""
    token = int(logits.argmax())
    return None if p_min > 0 and _probability(token, logits) < p_min else token


def _probability(token: int, logits: NDArray[np.float32]) -> float:
    n = min(N_CANDIDATES, len(logits))
    candidates = np.partition(logits, len(logits) - n)[-n:]
    return float(1.0 / np.exp(candidates - logits[token]).sum())
