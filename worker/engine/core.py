"""The engine's main object: the slots and the queue of one loaded model, advanced by `step()`.

All methods run on the engine thread. `scheduler` plans a step, `decode` computes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from llama_corral.common.base.errors import ApiError, ServerFault

from .adapters.lora import Adapters
from .batching.decode import BatchDecoder, DecodedRows, DecodeFailed, DraftRun, PreparedBatch
from .batching.jobs import EmbeddingTask, GenerationTask, Job, tasks_of
from .batching.media_tokens import text_of
from .batching.queue import JobQueue
from .batching.scheduler import BatchPlan, GroupHistory, SlotWork, choose_slot, plan
from .batching.slots import Slot, SlotState
from .cache.context_shift import n_tokens_kept, shift
from .cache.disk_cache import DiskCache
from .cache.slot_memory import SlotCache
from .counters import Counters
from .llama.context import Context
from .llama.embedding import embedded
from .llama.model import Model
from .media.encoder import MediaEncoder
from .messages import Begun, Event, Failed, Generation, Progress
from .sampling.probabilities import probabilities
from .slot_actions import SlotAction
from .speculative.speculative import Speculation
from .work import limits_of, slot_work

log = logging.getLogger("corral.engine")

Deliver = Callable[[list[tuple[Job, Event]]], None]


class Core:
    def __init__(
        self,
        model: Model,
        context: Context,
        adapters: Adapters,
        media_encoder: MediaEncoder | None,
        drafts: Speculation,
        deliver: Deliver,
        counters: Counters,
        disk: DiskCache | None = None,
    ) -> None:
        self.model, self.context, self.adapters, self.speculation = model, context, adapters, drafts
        self.options = model.options
        self.slots = [Slot(i, context.n_ctx_slot) for i in range(self.options.n_slots)]
        self.decoder = BatchDecoder(context, adapters, self.slots)
        self.slot_cache = SlotCache(model, context, adapters, self.slots, disk)
        self.media_encoder = media_encoder
        self.waiting = JobQueue()
        self._actions: list[SlotAction[Any]] = []
        self.published = counters.copy()
        """A copy of the counters after the last step, for other threads."""
        self._counters = counters
        self._history = GroupHistory()
        self._shifts = self.options.context_shift and context.can_shift
        if self.options.context_shift and not self._shifts:
            log.warning("--context-shift is off: this model does not support it; an answer ends at a full context")
        self._n_busy = 0
        self.stalled = False
        """True if all remaining work waits for an encoder or the disk. Any command resets it."""
        self._events: list[tuple[Job, Event]] = []
        self._deliver = deliver

    @property
    def busy(self) -> bool:
        return not self.stalled and (self._n_busy > 0 or bool(self.waiting or self._actions))

    def submit(self, job: Job) -> None:
        self.waiting.add(job)

    def run_on_slot(self, action: SlotAction[Any]) -> None:
        """Queue an action. It runs as soon as its slot is idle, before other requests get the slot."""
        self._actions.append(action)

    def cancel(self, job: Job) -> None:
        """Remove the job and release its slots immediately. They keep their cached tokens. No event of it follows."""
        self.waiting.discard(job)
        self._release_all(job)
        self._emit()

    def end_thoughts(self, job: Job) -> bool:
        """End the reasoning part of the job's answers. Return False if the job has no slot (not yet or no longer)."""
        tasks = [slot.task for slot in self.slots if slot.task is not None and slot.task.job is job]
        for task in tasks:
            if isinstance(task, GenerationTask):
                task.sampler.end_thoughts()
        return bool(tasks)

    def fail_all(self, error: ApiError) -> None:
        """Fail all requests and actions, also the queued ones, and clear all slots: their contents are not trusted."""
        for job in [*self._jobs(), *self.waiting]:
            self._fail(job, error)
        self.waiting.clear()
        for action in self._actions:
            action.fail(error)
        self._actions.clear()
        for slot in self.slots:
            self.slot_cache.clear(slot)
        self._emit()

    def step(self) -> None:
        """Run one step: admit requests, plan a batch, decode it, sample, emit the events."""
        self._act_on_idle_slots()
        self._admit()
        self._shift_full_contexts()
        self.speculation.propose(self.slots, self.decoder.n_prompt_with_streams)
        batch_plan = plan(self._work(), limits_of(self.model, self.context, self.decoder), self._history)
        pending = self.slot_cache.is_reading_disk or (self.media_encoder is not None and self.media_encoder.pending)
        self.stalled = batch_plan is None and not self._events and pending
        if batch_plan is not None:
            self._history = self._history.after(batch_plan.group)
            prepared = self._fill(batch_plan)
            try:
                for part in self.decoder.decode(prepared, self.slot_cache.clear_idle_slot):
                    self._update_counters(prepared, part)
                    self.speculation.on_computed(prepared, part)
                    self._sample(prepared, part)
            except DecodeFailed as error:
                self._fail_batch(error)
        self._emit()

    def _act_on_idle_slots(self) -> None:
        for action in list(self._actions):
            slot = self.slots[action.id_slot % len(self.slots)]
            if slot.idle:
                self._actions.remove(action)
                action.run(slot)

    def _fill(self, batch_plan: BatchPlan) -> PreparedBatch:
        if batch_plan.kind == "media" and self.media_encoder is not None:
            return self.media_encoder.fill(batch_plan, self.slots, self.decoder)
        self.slot_cache.make_checkpoints(batch_plan.prompts)
        return self.decoder.fill(batch_plan)

    # -- admit ---------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Assign slots in the queue's order. A request that needs several slots blocks later ones."""
        for slot in self.slot_cache.waiters_ready():
            self._begin_prompt(slot)
        if not self.waiting or self._n_busy == len(self.slots):
            return
        for job in self.waiting.in_order(slot.task.job for slot in self.slots if slot.task):
            if self._assign_slots(job):
                self.waiting.serve(job)
            elif job.n_choices > 1 or self._n_busy == len(self.slots) or self.slot_cache.is_reading_disk:
                return

    def _assign_slots(self, job: Job) -> bool:
        prompt = job.request.tokens
        try:
            job.activation = self.adapters.activation(job.request, in_pieces=self._may_split_prompt(job))
        except ApiError as error:
            self._fail(job, error)
            return True
        facts = [slot.facts(prompt, job.activation) for slot in self.slots]
        chosen = choose_slot(facts, len(prompt), job.id_slot, self.options.slot_prompt_similarity)
        others = [slot for slot in self.slots if slot.idle and slot.id != chosen][: job.n_choices - 1]
        if chosen is None or len(others) < job.n_choices - 1:
            return False
        if not self.slot_cache.start_or_poll_disk_read(job, facts[chosen]):
            return False
        try:
            tasks = tasks_of(job, self.model.vocab, self.options.n_predict, self.options.special)
        except ApiError as error:
            self._fail(job, error)
            return True
        first = self.slots[chosen]
        self.slot_cache.swap_prompt(first, job, facts[chosen])
        for slot, task in zip((first, *others), tasks, strict=True):
            slot.begin(task)
            self._n_busy += 1
        self._begin_prompt(first)
        self.slot_cache.save_idle_slots()
        return True

    def _begin_prompt(self, slot: Slot) -> None:
        """Start the slot's prompt, or leave the slot waiting while another slot computes the same prefix."""
        task = slot.task
        assert task is not None
        job = task.job
        if not self.slot_cache.share_prefix(slot, job):
            return
        n_past = self.slot_cache.reuse_prefix(slot, job)
        slot.transition_to(SlotState.PROMPT)
        if not isinstance(task, GenerationTask):
            return
        if self.media_encoder is not None:
            self.media_encoder.begin(slot, task)
        self._counters.prompt_tokens_cached += n_past
        task.choice.clock.begin(time.monotonic(), n_past)
        if task.request.stream:
            self._event(job, Begun(task.choice.index, len(task.prompt), n_past))
            self._report_progress(slot, task)
        if not task.prompt:
            self._finish(slot, task)

    def _shift_full_contexts(self) -> None:
        for slot in self.slots if self._shifts else ():
            task = slot.task
            if slot.state is not SlotState.GENERATING or not isinstance(task, GenerationTask) or not slot.is_full:
                continue
            if task.job.n_choices > 1:
                self._fail(task.job, ServerFault("context shift cannot be used for shared prompt"))
                continue
            if not self.slot_cache.make_cells_private(slot):
                self._fail(task.job, ServerFault("Context size has been exceeded."))
                continue
            n_keep = n_tokens_kept(task.request.n_keep, len(task.prompt), self.model.vocab.add_bos)
            begin, end = shift(slot, self.context, n_keep, task.request.n_discard)
            self.speculation.on_shifted(slot, begin, end)
            task.choice.truncated = True
            log.debug("slot %d: context shift removes positions %d to %d", slot.id, begin, end - 1)

    # -- plan ----------------------------------------------------------------------------------------------------------

    def _work(self) -> Sequence[SlotWork]:
        work, failures = slot_work(self.slots, self.context, self.slot_cache, self.media_encoder)
        for task, error in failures:
            self._fail(task.job, ServerFault(str(error)))
        return work

    def _may_split_prompt(self, job: Job) -> bool:
        """Return True if the job's prompt may be split over several batches."""
        return isinstance(job.request, Generation) or self.context.embeds_in_pieces

    # -- decode --------------------------------------------------------------------------------------------------------

    def _update_counters(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        counters = self._counters
        counters.decodes += 1
        counters.busy_slots += self._n_busy
        counters.max_tokens = max(counters.max_tokens, *[len(slot.tokens) for slot in self.slots])
        if not part.n_prompt:
            return
        counters.prompt_tokens += part.n_prompt
        counters.prompt_seconds += part.seconds
        now = time.monotonic()
        for run in prepared.prompts:
            task = run.slot.task
            if isinstance(task, GenerationTask) and run.row < part.end and part.begin < run.row + run.n:
                task.choice.clock.prompt_advanced(now, len(run.slot.tokens))
                self._report_progress(run.slot, task)

    def _fail_batch(self, error: DecodeFailed) -> None:
        """Fail all running requests and clear their slots: it is unknown how much of the batch was computed."""
        log.error("%s (llama_decode returned %d)", error, error.result)
        busy = [slot for slot in self.slots if not slot.idle]
        for job in self._jobs():
            self._fail(job, ServerFault(str(error)))
        for slot in busy:
            self.slot_cache.clear(slot)

    # -- sample --------------------------------------------------------------------------------------------------------

    def _sample(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        drafts = {run.slot.id: run for run in prepared.drafts}
        for row, slot in enumerate(prepared.streams[part.begin : part.end]):
            if slot.id in drafts:
                self._verify(slot, row, drafts[slot.id])
            else:
                self._sample_slot(slot, row)
        for run in prepared.prompts:
            row = run.row + run.n - 1 - part.begin
            if not run.completes or not 0 <= row < part.end - part.begin:
                continue
            task = run.slot.task
            if isinstance(task, EmbeddingTask):
                self._finish_embedding(run.slot, task, range(row - run.n + 1, row + 1))
            elif task is not None:
                for slot in self._start_choices(run.slot, task):
                    self._sample_slot(slot, row)
        for slot in self.speculation.finish_step() if drafts else ():
            self._clear_slot(slot)

    def _start_choices(self, first: Slot, task: GenerationTask) -> list[Slot]:
        """Start all choices of a request whose prompt is computed in `first`; the other slots get a copy of it."""
        first.transition_to(SlotState.GENERATING)
        if self.media_encoder is not None:
            self.media_encoder.end(task.job)
        text = text_of(first.tokens)
        task.sampler.prime(text)
        started = [first]
        for slot in self.slots if task.job.n_choices > 1 else ():
            other = slot.task
            if slot.state is SlotState.WAITING and isinstance(other, GenerationTask) and other.job is task.job:
                self.slot_cache.copy(first, slot)
                slot.transition_to(SlotState.GENERATING)
                other.choice.clock = task.choice.clock.copy()
                other.sampler.prime(text)
                started.append(slot)
        return started

    def _verify(self, slot: Slot, row: int, run: DraftRun) -> None:
        task = slot.task
        if isinstance(task, GenerationTask):
            task.choice.clock.n_drafted += len(run.tokens)
        n_accepted, is_cut = self.speculation.verify(slot, row, run, self._sample_slot)
        self._counters.add_drafts(1, len(run.tokens), [1] * n_accepted)
        if not is_cut:
            self._clear_slot(slot)

    def _clear_slot(self, slot: Slot) -> None:
        """Clear a slot whose sequence has unknown contents, and fail its request."""
        if slot.task is not None:
            self._fail(slot.task.job, ServerFault("Compute error."))
        self.slot_cache.clear(slot)

    def _sample_slot(self, slot: Slot, row: int, guess: int | None = None, *, taken: bool = False) -> bool:
        """Sample the next token; True: it equals `guess`, a draft's token. `taken`: force `guess`, for benchmarks."""
        task = slot.task
        if not isinstance(task, GenerationTask):  # the job failed in another of its choices
            return False
        choice, sampler = task.choice, task.sampler
        try:
            if taken and guess is not None:
                token = sampler.force_token(self.context, row, guess)
            else:
                token = sampler.sample(self.context, row)
            choice.clock.tick(time.monotonic(), guessed=token == guess)
            probs = None
            if (wanted := task.request.sampling).wants_probs:
                probs = probabilities(sampler, self.context, row, token, wanted, self.options.special)
            slot.sampled = token
            slot.draft.clear()
            piece = choice.add(token, probs, self.model.vocab, slot.is_full and not self._shifts)
        except ApiError as error:
            self._fail(task.job, error)
            return False
        if piece is not None:
            self._event(task.job, piece)
        if choice.finished:
            self._finish(slot, task)
        return token == guess

    # -- end -----------------------------------------------------------------------------------------------------------

    def _finish(self, slot: Slot, task: GenerationTask) -> None:
        self._event(task.job, task.choice.finish(slot.id, len(slot.tokens), self.model.vocab))
        self._release(slot)

    def _finish_embedding(self, slot: Slot, task: EmbeddingTask, rows: range) -> None:
        if self.media_encoder is not None:
            self.media_encoder.end(task.job)
        self._event(task.job, embedded(self.context, self.model, slot.id, rows, task.request))
        self._release(slot)

    def _jobs(self) -> list[Job]:
        return list(dict.fromkeys(slot.task.job for slot in self.slots if slot.task))

    def _fail(self, job: Job, error: ApiError) -> None:
        self._event(job, Failed(error))
        self._release_all(job)

    def _release_all(self, job: Job) -> None:
        for slot in self.slots:
            if slot.task is not None and slot.task.job is job:
                self._release(slot)
        self.slot_cache.forget_job(job)
        if self.media_encoder is not None:
            self.media_encoder.end(job)

    def _release(self, slot: Slot) -> None:
        task = slot.release(time.monotonic())
        self._n_busy -= 1
        if isinstance(task, GenerationTask):
            self._counters.add_prediction(task.choice.clock.n_predicted, task.choice.clock.predicted_seconds)
        # an embedding's cells cannot be reused; of several choices only the slot of the first keeps its cells
        self.slot_cache.finish_task(slot, keeps=isinstance(task, GenerationTask) and not task.shares_prompt)

    # -- emit ----------------------------------------------------------------------------------------------------------

    def _event(self, job: Job, event: Event) -> None:
        self._events.append((job, event))

    def _report_progress(self, slot: Slot, task: GenerationTask) -> None:
        if task.request.stream and task.request.return_progress:
            clock, index, total = task.choice.clock, task.choice.index, len(task.prompt)
            elapsed = 1e3 * (time.monotonic() - clock.start)
            self._event(task.job, Progress(index, total, clock.n_cached, len(slot.tokens), elapsed, clock.timings()))

    def _emit(self) -> None:
        """Publish the counters and deliver all events of the step in one wake-up of the event loop."""
        self._counters.processing, self._counters.deferred = self._n_busy, len(self.waiting)
        self.published = self._counters.copy()
        if self._events:
            events, self._events = self._events, []
            self._deliver(events)
