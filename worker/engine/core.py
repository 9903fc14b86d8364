"""The engine's heart: slots, queue and context of one loaded model, advanced by `step()`.

Everything here runs on the engine thread (`runner` calls it); only `abort_if_cancelled` may be called from elsewhere.
What to compute is decided by `scheduler`, whether to go on by `choice`; this module carries it out.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ...presets.errors import ApiError, ServerFault
from .batch import Batch
from .choice import Choice
from .context import ABORTED, DECODED, NO_ROOM, Context
from .counters import Counters
from .embedding import embedded
from .messages import Begun, Embedding, Event, Failed, Progress
from .model import Model
from .options import EngineOptions
from .pacing import Pacer
from .probabilities import after_sampling, before_sampling
from .reuse import reusable_prefix
from .sampling import RANDOM_SEED, Sampler
from .scheduler import BatchPlan, History, Limits, Work, choose_slot, plan
from .slots import Job, Slot, SlotState, Task

log = logging.getLogger("corral.engine")

Deliver = Callable[[list[tuple[Job, Event]]], None]


@dataclass(frozen=True, slots=True)
class Share:
    """A slot's consecutive rows of a batch."""

    slot: Slot
    row: int
    n: int
    completes: bool  # its last row has the output to sample from, or the embedding


class Core:
    def __init__(self, model: Model, context: Context, deliver: Deliver, counters: Counters) -> None:
        options: EngineOptions = model.options
        self.model, self.context, self.options = model, context, options
        self.slots = [Slot(i, context.n_ctx_slot) for i in range(options.n_slots)]
        self.waiting: deque[Job] = deque()
        self.counters = counters
        self.published = counters.copy()
        """The counters as of the last step, for other threads."""
        self._batch = Batch(context.n_batch)
        self._pacer = Pacer(context.n_batch)
        self._history = History()
        self._events: list[tuple[Job, Event]] = []
        self._deliver = deliver
        self._job_ids = itertools.count()
        self._in_flight: tuple[Job, ...] = ()
        self._in_flight_lock = threading.Lock()

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(not slot.idle for slot in self.slots)

    def next_job_id(self) -> int:
        """From any thread."""
        return next(self._job_ids)

    # -- requests ------------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def cancel(self, job: Job) -> None:
        """The slots are free at once; nothing more is emitted."""
        if job in self.waiting:
            self.waiting.remove(job)
        self._release_all(job)
        self._emit()

    def abort_if_cancelled(self) -> None:
        """From any thread: nobody is waiting for the batch under way any more."""
        with self._in_flight_lock:
            if self._in_flight and all(job.cancelled for job in self._in_flight):
                self.context.abort()

    def cancel_all(self) -> None:
        """From any thread: the batch under way is not waited for."""
        with self._in_flight_lock:
            if self._in_flight:
                self.context.abort()

    def fail_all(self, error: ApiError) -> None:
        """Ends everything, queue included."""
        for job in [*self._jobs(), *self.waiting]:
            self._fail(job, error)
        self.waiting.clear()
        self._emit()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One turn: admit, plan, decode, sample, emit."""
        self._admit()
        batch_plan = plan(self._work(), self._limits(), self._history)
        if batch_plan is not None:
            self._history = self._history.after(batch_plan.kind)
            shares = self._fill(batch_plan)
            for begin, end in self._decode(batch_plan, shares):
                self._sample(shares, begin, end)
        self._emit()

    # -- admit ---------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """First those who want a certain slot, then in order of arrival. One that needs several slots holds up the rest."""
        if not self.waiting or not any(slot.idle for slot in self.slots):
            return
        bound = [job for job in self.waiting if job.id_slot >= 0]
        free = [job for job in self.waiting if job.id_slot < 0]
        for job in bound + free:
            if self._place(job):
                self.waiting.remove(job)
            elif job.n_choices > 1 or not any(slot.idle for slot in self.slots):
                return

    def _place(self, job: Job) -> bool:
        prompt = job.request.tokens
        facts = [slot.facts(prompt) for slot in self.slots]
        chosen = choose_slot(facts, len(prompt), job.id_slot, self.options.slot_prompt_similarity)
        others = [slot for slot in self.slots if slot.idle and slot.id != chosen][: job.n_choices - 1]
        if chosen is None or len(others) < job.n_choices - 1:
            return False
        # here a host-memory prompt cache would save what the slot is about to lose, and look for something better
        first = self.slots[chosen]
        try:
            tasks = [self._task(job, index, chosen) for index in range(job.n_choices)]
        except ApiError as error:
            self._fail(job, error)
            return True
        for slot, task in zip((first, *others), tasks, strict=True):
            slot.begin(task)
        self._begin_prompt(first)
        return True

    def _task(self, job: Job, index: int, first: int) -> Task:
        request = job.request
        if isinstance(request, Embedding):
            return Task(job)
        sampling = request.sampling
        if index and sampling.seed != RANDOM_SEED:
            sampling = replace(sampling, seed=(sampling.seed + index) & 0xFFFFFFFF)
        n_predict = request.n_predict if request.n_predict != -1 else self.options.n_predict
        choice = Choice(request, index, n_predict, self.options.special)
        return Task(job, choice, Sampler(sampling, self.model.vocab), parent=first if index else None)

    def _begin_prompt(self, slot: Slot) -> None:
        assert slot.task is not None
        job, choice = slot.task.job, slot.task.choice
        n_past = reusable_prefix(slot, job.request, self.context, self.model.n_swa)
        del slot.tokens[n_past:]
        if choice is None:
            return
        self.counters.prompt_tokens_cached += n_past
        choice.clock.start, choice.clock.n_cached = time.monotonic(), n_past
        if choice.request.stream:
            self._event(job, Begun(choice.index))
            self._report_progress(slot)

    # -- plan and fill -------------------------------------------------------------------------------------------------

    def _work(self) -> list[Work]:
        return [
            self._work_of(slot, slot.task) for slot in self.slots if slot.task and slot.state is not SlotState.WAITING
        ]

    def _work_of(self, slot: Slot, task: Task) -> Work:
        n_left = 0 if slot.state is SlotState.GENERATING else len(task.prompt) - len(slot.tokens)
        if task.choice is not None:
            return Work(slot.id, "generation", n_left, False, task.job.arrived, task.waited)
        return Work(slot.id, "embedding", n_left, not self.context.embeds_in_pieces, task.job.arrived, task.waited)

    def _limits(self) -> Limits:
        return Limits(self.context.n_batch, self._pacer.n_prompt_beside_streams, self.options.continuous_batching)

    def _fill(self, batch_plan: BatchPlan) -> list[Share]:
        batch, slots = self._batch, self.slots
        batch.clear()
        self.context.set_embeddings(batch_plan.kind == "embedding")
        for slot in slots:
            if slot.task is not None:
                slot.task.waited += 1
        streams = [slots[i] for i in batch_plan.generating]
        if streams:
            batch.add_rows([s.sampled for s in streams], [len(s.tokens) for s in streams], batch_plan.generating)
        shares = [Share(slot, row, 1, True) for row, slot in enumerate(streams)]
        for i, n in batch_plan.prompts:
            shares.append(self._fill_prompt(slots[i], n, batch_plan.kind == "embedding"))
        for share in shares:
            assert share.slot.task is not None
            share.slot.task.waited = 0
        return shares

    def _fill_prompt(self, slot: Slot, n: int, output: bool) -> Share:
        assert slot.task is not None
        prompt, position, row = slot.task.prompt, len(slot.tokens), self._batch.size
        self._batch.add_run(prompt[position : position + n], position, slot.id, output)
        completes = position + n == len(prompt)
        if completes:
            self._batch.want_output(row + n - 1)
        return Share(slot, row, n, completes)

    # -- decode --------------------------------------------------------------------------------------------------------

    def _decode(self, batch_plan: BatchPlan, shares: list[Share]) -> Iterator[tuple[int, int]]:
        """Yields the ranges of rows that are computed, smaller ones when the KV pool has no room for all at once."""
        begin, chunk = 0, self._batch.size
        while begin < self._batch.size:
            n = min(chunk, self._batch.size - begin)
            started = time.monotonic()
            result = self._decode_rows(begin, n, shares)
            if result == DECODED:
                self._account(shares, begin, begin + n, time.monotonic() - started)
                yield begin, begin + n
                begin, chunk = begin + n, self._batch.size
            elif result == NO_ROOM and self._purge_idle_slot():
                continue
            elif result == NO_ROOM and n > 1 and self._may_cut(batch_plan):
                chunk = n // 2
            elif result == ABORTED:
                self._resynchronise()
                return
            else:
                self._lose(result)
                return

    def _decode_rows(self, begin: int, n: int, shares: list[Share]) -> int:
        with self._in_flight_lock:
            self.context.clear_abort()
            self._in_flight = tuple({share.slot.task.job for share in shares if share.slot.task})
        self.abort_if_cancelled()
        try:
            return self.context.decode(self._batch, begin, n)
        finally:
            with self._in_flight_lock:
                self._in_flight = ()

    def _may_cut(self, batch_plan: BatchPlan) -> bool:
        return batch_plan.kind == "generation" or self.context.embeds_in_pieces

    def _account(self, shares: list[Share], begin: int, end: int, seconds: float) -> None:
        """The rows are computed: slots remember them, counters count them."""
        now = time.monotonic()
        n_prompt = 0
        for share in shares:
            first, last = max(share.row, begin), min(share.row + share.n, end)
            slot, task = share.slot, share.slot.task
            if first >= last or task is None:
                continue
            if slot.state is SlotState.GENERATING:
                slot.tokens.append(slot.sampled)
                continue
            slot.tokens.extend(task.prompt[len(slot.tokens) : len(slot.tokens) + last - first])
            n_prompt += last - first
            if task.choice is not None:
                task.choice.clock.n_prompt += last - first
                task.choice.clock.prompt_end = now
                self._report_progress(slot)
        self._pacer.observe(end - begin - n_prompt, n_prompt, seconds)
        self._count_decode(n_prompt, seconds)

    def _count_decode(self, n_prompt: int, seconds: float) -> None:
        counters = self.counters
        counters.decodes += 1
        counters.busy_slots += sum(not slot.idle for slot in self.slots)
        counters.max_tokens = max(counters.max_tokens, *(len(slot.tokens) for slot in self.slots))
        if n_prompt:
            counters.prompt_tokens += n_prompt
            counters.prompt_seconds += seconds

    def _purge_idle_slot(self) -> bool:
        """Gives the cells of one idle slot back to the pool, if there is a pool."""
        if not self.options.kv_unified:
            return False
        for slot in self.slots:
            if slot.idle and slot.tokens:
                log.warning("slot %d: forgetting %d tokens, the KV pool is full", slot.id, len(slot.tokens))
                self._clear(slot)
                return True
        return False

    def _resynchronise(self) -> None:
        """After an abort some rows are computed and some not: the memory says which."""
        for slot in self.slots:
            if slot.task is None or slot.state is SlotState.WAITING:
                continue
            n_computed = self.context.last_position(slot.id) + 1
            n_kept = min(n_computed, len(slot.tokens))
            if n_computed != len(slot.tokens) and not self.context.keep_first(slot.id, n_kept):
                self._fail(slot.task.job, ServerFault("The computation was interrupted."))
                self._clear(slot)
            elif slot.state is SlotState.PROMPT:
                del slot.tokens[n_kept:]

    def _lose(self, result: int) -> None:
        """How much of the batch was computed is unknown: everyone in it ends here, and no slot remembers anything."""
        text = {NO_ROOM: "Context size has been exceeded.", -1: "Invalid input batch."}.get(result, "Compute error.")
        log.error("%s (llama_decode returned %d)", text, result)
        busy = [slot for slot in self.slots if not slot.idle]
        for job in self._jobs():
            self._fail(job, ServerFault(text))
        for slot in busy:
            self._clear(slot)

    # -- sample --------------------------------------------------------------------------------------------------------

    def _sample(self, shares: list[Share], begin: int, end: int) -> None:
        for share in shares:
            row = share.row + share.n - 1
            slot, task = share.slot, share.slot.task
            if not share.completes or not begin <= row < end or task is None:
                continue
            if task.choice is None:
                self._finish_embedding(slot, task, share, begin)
                continue
            for sampling_slot in self._start_choices(slot, task):
                self._sample_slot(sampling_slot, row - begin)

    def _start_choices(self, slot: Slot, task: Task) -> list[Slot]:
        """A prompt that has just been computed: all its choices begin, sharing what is in the slot."""
        if slot.state is SlotState.GENERATING:
            return [slot]
        assert task.choice is not None
        children = [s for s in self.slots if s.state is SlotState.WAITING and s.task and s.task.job is task.job]
        for child in children:
            self.context.copy_sequence(slot.id, child.id)
            child.tokens = list(slot.tokens)
            assert child.task is not None and child.task.choice is not None
            child.task.choice.clock = replace(task.choice.clock)
        for each in (slot, *children):
            each.move(SlotState.GENERATING)
            assert each.task is not None and each.task.sampler is not None
            each.task.sampler.prime(each.tokens)
        return [slot, *children]

    def _sample_slot(self, slot: Slot, row: int) -> None:
        task = slot.task
        if task is None:  # its job has failed with another choice
            return
        assert task.sampler is not None and task.choice is not None
        choice, vocab = task.choice, self.model.vocab
        try:
            token = task.sampler.sample(self.context, row)
        except ApiError as error:
            self._fail(task.job, error)
            return
        slot.sampled = token
        self._tick(choice)
        sampling = choice.request.sampling
        probs = None
        if sampling.n_probs > 0:
            if sampling.post_sampling_probs:
                probs = after_sampling(task.sampler.candidates(), token, sampling.n_probs, vocab, self.options.special)
            else:
                probs = before_sampling(self.context.logits(row), token, sampling.n_probs, vocab, self.options.special)
        piece = choice.add(token, probs, vocab, len(slot.tokens), slot.n_ctx)
        if piece is not None:
            self._event(task.job, piece)
        if choice.finished:
            self._event(task.job, choice.finish(slot.id, len(slot.tokens), vocab))
            self._release(slot)

    def _tick(self, choice: Choice) -> None:
        clock = choice.clock
        clock.last_token = time.monotonic()
        clock.n_predicted += 1
        if clock.n_predicted == 1:
            clock.prompt_end = clock.last_token

    def _finish_embedding(self, slot: Slot, task: Task, share: Share, begin: int) -> None:
        request = task.job.request
        assert isinstance(request, Embedding)
        rows = range(share.row - begin, share.row + share.n - begin)
        self._event(task.job, embedded(self.context, self.model, slot.id, rows, request))
        self._release(slot)

    # -- end -----------------------------------------------------------------------------------------------------------

    def _jobs(self) -> list[Job]:
        return list(dict.fromkeys(slot.task.job for slot in self.slots if slot.task))

    def _fail(self, job: Job, error: ApiError) -> None:
        self._event(job, Failed(error))
        self._release_all(job)

    def _release_all(self, job: Job) -> None:
        for slot in self.slots:
            if slot.task is not None and slot.task.job is job:
                self._release(slot)

    def _release(self, slot: Slot) -> None:
        task = slot.release(time.monotonic())
        if task.choice is not None and task.choice.clock.n_predicted:
            clock = task.choice.clock
            self.counters.predicted_tokens += clock.n_predicted
            self.counters.predicted_steps += clock.n_predicted - 1
            self.counters.predicted_seconds += clock.predicted_seconds
        if task.choice is None or task.parent is not None:
            self._clear(slot)  # an embedding's cells serve nobody; the first choice's slot remembers for its siblings

    def _clear(self, slot: Slot) -> None:
        self.context.forget(slot.id)
        slot.tokens = []

    # -- emit ----------------------------------------------------------------------------------------------------------

    def _event(self, job: Job, event: Event) -> None:
        if not job.cancelled:
            self._events.append((job, event))

    def _report_progress(self, slot: Slot) -> None:
        assert slot.task is not None and slot.task.choice is not None
        job, choice = slot.task.job, slot.task.choice
        if choice.request.stream and choice.request.return_progress:
            clock = choice.clock
            elapsed = 1e3 * (time.monotonic() - clock.start)
            total = len(choice.request.tokens)
            self._event(job, Progress(choice.index, total, clock.n_cached, len(slot.tokens), elapsed, clock.timings()))

    def _emit(self) -> None:
        self.counters.processing = sum(not slot.idle for slot in self.slots)
        self.counters.deferred = len(self.waiting)
        self.published = self.counters.copy()
        if self._events:
            events, self._events = self._events, []
            self._deliver(events)
