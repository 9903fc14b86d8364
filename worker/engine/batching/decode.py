"""Carries out a plan: fills the batch, decodes it, and handles a full KV cache and aborts.

Called by `Core` on the engine thread. Of a slot it changes only the contents. Any thread may call `abort_if`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..adapters.lora import Adapters
from ..llama.batch import Batch, MediaBatch
from ..llama.context import ABORTED, DECODED, NO_ROOM, Context
from .jobs import EmbeddingTask, Job
from .media_tokens import MediaToken
from .prefill_budget import Pacer
from .scheduler import BatchPlan
from .slots import Slot, SlotState


class PromptRun(NamedTuple):
    """A slot's consecutive rows of a batch."""

    slot: Slot
    row: int
    n: int
    completes: bool  # True if the prompt ends with the last row


class DraftRun(NamedTuple):
    """The rows of a slot's draft: `tokens` may follow its sampled token."""

    slot: Slot
    row: int
    tokens: list[int]


class DecodedRows(NamedTuple):
    """Rows `begin` to `end` of the batch were computed. Their outputs are valid until the next decode."""

    begin: int
    end: int
    n_prompt: int
    seconds: float


class PreparedBatch(Struct):
    """A batch and the owners of its rows: one row per stream, then prompts, then drafts, which are dropped first."""

    plan: BatchPlan
    batch: Batch | MediaBatch
    streams: list[Slot]
    prompts: list[PromptRun]
    drafts: list[DraftRun]
    causal: bool = True

    def jobs(self) -> set[Job]:
        slots = (*self.streams, *(run.slot for run in self.prompts))
        return {slot.task.job for slot in slots if slot.task is not None}


class DecodeFailed(Exception):
    """llama_decode failed: the contents of the batch's sequences are unknown."""

    def __init__(self, result: int) -> None:
        texts = {NO_ROOM: "Context size has been exceeded.", -1: "Invalid input batch."}
        super().__init__(texts.get(result, "Compute error."))
        self.result = result


class BatchDecoder:
    def __init__(self, context: Context, adapters: Adapters, slots: Sequence[Slot]) -> None:
        self._context = context
        self._adapters = adapters
        self._slots = slots
        self._batch = Batch(context.n_batch)
        self._pacer = Pacer(context.n_batch)
        self._n_batches = 0
        self._in_flight: set[Job] = set()
        self._lock = threading.Lock()  # protects _in_flight and the abort flag

    @property
    def n_prompt_with_streams(self) -> int:
        return self._pacer.n_prompt_with_streams

    def abort_if(self, condition: Callable[[Job], bool]) -> None:
        """Abort the running decode if the condition is true for all its jobs. May be called from any thread."""
        with self._lock:
            if self._in_flight and all(condition(job) for job in self._in_flight):
                self._context.abort()

    def fill(self, plan: BatchPlan) -> PreparedBatch:
        self._n_batches += 1
        batch, slots = self._batch, self._slots
        batch.clear()
        self._context.set_embeddings(plan.kind == "embedding")
        self._adapters.apply(self._context, plan.group.adapters)
        streams = [slots[i] for i in plan.generating]
        if streams:
            batch.add_rows([s.sampled for s in streams], [s.position for s in streams], plan.generating)
            for slot in streams:
                slot.last_turn = self._n_batches
        order = _one_by_one(plan.prompts) if plan.kind == "embedding" else plan.prompts
        prompts = [self._fill_prompt(slots[i], n, plan.kind == "embedding") for i, n in order]
        drafts = [self._fill_draft(slots[i], n) for i, n in plan.drafts]
        return PreparedBatch(plan, batch, streams, prompts, drafts)

    def fill_media(
        self, plan: BatchPlan, vectors: NDArray[np.float32], positions: NDArray[np.int32], causal: bool
    ) -> PreparedBatch:
        """Prepare a batch with the next rows of an image for the plan's only slot.

        `vectors` has the shape (rows, n_embd), `positions` (1 or 4, rows); both are of the whole image.
        """
        self._n_batches += 1
        (id, n), slot = plan.prompts[0], self._slots[plan.prompts[0][0]]
        assert slot.task is not None
        slot.last_turn = self._n_batches
        begin = slot.media_done
        end = begin + n
        completes = end == len(vectors) and len(slot.tokens) + end == len(slot.task.prompt)
        vectors, positions = vectors[begin:end], positions[:, begin:end]
        embeds = completes and isinstance(slot.task, EmbeddingTask)
        self._context.set_embeddings(embeds)
        self._adapters.apply(self._context, plan.group.adapters)
        batch = MediaBatch(vectors, positions, id, n if embeds else int(completes))
        return PreparedBatch(plan, batch, [], [PromptRun(slot, 0, n, completes)], [], causal)

    def _fill_prompt(self, slot: Slot, n: int, output: bool) -> PromptRun:
        assert slot.task is not None
        slot.last_turn = self._n_batches
        prompt, begin, row = slot.task.prompt, len(slot.tokens), self._batch.size
        self._batch.add_run(prompt[begin : begin + n], slot.position, slot.id, output)
        completes = begin + n == len(prompt)
        if completes:
            self._batch.want_output(row + n - 1)
        return PromptRun(slot, row, n, completes)

    def _fill_draft(self, slot: Slot, n: int) -> DraftRun:
        row, tokens = self._batch.size, slot.draft[:n]
        self._batch.add_run(tokens, slot.position + 1, slot.id, output=True)
        return DraftRun(slot, row, tokens)

    def decode(self, prepared: PreparedBatch, make_room: Callable[[], bool]) -> Iterator[DecodedRows]:
        """Decode the batch. Yield the computed rows: the whole batch, or parts of it if the KV cache has no room.

        If there is no room, the drafts are dropped first, so that they are computed with all the rest or not at all.
        Then `make_room` is called, which clears an idle slot if there is one; then the batch is halved. Ends early
        after an abort. Raises DecodeFailed.
        """
        begin, size = 0, prepared.batch.size
        n = size
        while begin < size:
            n = min(n, self._context.n_batch)
            started = time.monotonic()
            result = self._decode_rows(prepared, begin, n)
            if result == DECODED:
                seconds = time.monotonic() - started
                n_prompt = self._record_computed(prepared, begin, begin + n)
                self._pacer.observe(n - n_prompt, n_prompt, seconds)
                yield DecodedRows(begin, begin + n, n_prompt, seconds)
                begin += n
                n = size - begin
            elif result == NO_ROOM and prepared.drafts:
                n = size = prepared.drafts[0].row
                prepared.drafts.clear()
            elif result == NO_ROOM and make_room():
                continue
            elif result == NO_ROOM and n > 1 and self._may_split(prepared):
                n //= 2
            elif result == ABORTED:
                self._resynchronise(prepared)
                return
            else:
                raise DecodeFailed(result)

    def _decode_rows(self, prepared: PreparedBatch, begin: int, n: int) -> int:
        with self._lock:
            self._context.clear_abort()
            self._in_flight = prepared.jobs()
        self.abort_if(lambda job: job.cancelled)  # they may have been cancelled after the last commands were run
        try:
            if not prepared.causal:
                self._context.set_causal(False)
            return self._context.decode(prepared.batch, begin, n)
        finally:
            if not prepared.causal:
                self._context.set_causal(True)
            with self._lock:
                self._in_flight = set()

    def _may_split(self, prepared: PreparedBatch) -> bool:
        return prepared.causal and (prepared.plan.kind != "embedding" or self._context.embeds_in_pieces)

    def _record_computed(self, prepared: PreparedBatch, begin: int, end: int) -> int:
        """Add the computed rows to their slots' contents. Return the number of prompt rows."""
        for slot in prepared.streams[begin:end]:
            slot.tokens.append(slot.sampled)
        n_prompt = 0
        for run in prepared.prompts:
            n = min(run.row + run.n, end) - max(run.row, begin)
            if n > 0 and run.slot.task is not None:
                begin_text = len(run.slot.tokens)
                following = run.slot.task.prompt[begin_text : begin_text + n]
                if prepared.plan.kind != "media":
                    run.slot.tokens.extend(following)
                elif isinstance(image := following[0], MediaToken):
                    run.slot.media_done += n
                    if run.slot.media_done == image.n_tokens:  # a slot's tokens contain whole images only
                        run.slot.append_media(image)
                n_prompt += n
        return n_prompt

    def _resynchronise(self, prepared: PreparedBatch) -> None:
        """Make the slots' tokens match their sequences after an abort, when only some rows are computed.

        Raises DecodeFailed if a stream that is not cancelled cannot be cut back.
        """
        for slot in prepared.streams:
            if self._context.truncate(slot.id, slot.position):
                continue
            if slot.task is not None and not slot.task.job.cancelled:
                raise DecodeFailed(ABORTED)
            self._context.clear_sequence(slot.id)  # its request is cancelled; the other requests must not fail
            slot.set_contents([], slot.activation)
        for run in prepared.prompts:
            slot = run.slot
            if slot.task is None or slot.state is not SlotState.PROMPT:
                continue
            # the last token must be computed again, because its logits are needed; part of an image is discarded
            n_new = self._context.last_position(slot.id) + 1 - slot.position if prepared.plan.kind != "media" else 0
            slot.media_done = 0
            n_now, n_most = len(slot.tokens), len(slot.task.prompt) - 1
            slot.tokens.extend(slot.task.prompt[n_now : min(n_now + n_new, n_most)])
            if len(slot.tokens) > n_most:
                slot.truncate(n_most)
            if n_new < 0 or not self._context.truncate(slot.id, slot.position):
                self._context.clear_sequence(slot.id)
                slot.set_contents([], slot.activation)


def _one_by_one(prompts: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """Return the prompts in descending order of slots, so that llama.cpp computes them one by one.

    With a split KV cache llama.cpp groups sequences in ascending order: it computes them in parallel up to the length
    of the shortest, and pools the rest of the others separately. The vector is then wrong; llama-server returns it.
    """
    return sorted(prompts, reverse=True)
