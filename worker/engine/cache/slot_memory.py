"""Manages the slots' cached contents: their sequences, their checkpoints, and the caches in host memory and on disk.

Owned by the engine thread, through `core`, which decides when; `prefix_reuse`, `prefix_sharing`, `checkpoints` and
`prompt_cache` decide what. It changes a slot's tokens and its leader, never its state or its task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ..adapters.activation import activation
from ..adapters.lora import Adapters
from ..batching.checkpoints import Checkpoint, CheckpointRules
from ..batching.jobs import EmbeddingTask, GenerationTask, Job
from ..batching.media_tokens import lag, text_end
from ..batching.prefix import common_prefix
from ..batching.scheduler import SlotFacts
from ..batching.slots import Leader, Slot, SlotState
from ..llama.context import Context
from ..llama.model import Model
from ..messages import Generation
from .disk_cache import DiskCache, SavablePrompt
from .prefix_reuse import make_private, reusable_prefix
from .prefix_sharing import MIN_GAIN, Candidate, choose_source
from .prompt_cache import CachedPrompt, PromptCache, StateBytes, should_search_cache
from .slot_files import ReadMedia, SlotFile, restore

log = logging.getLogger("corral.engine")

COPY_COST = 16
"""Computing a cell takes at least this many times as long as copying it. With split KV a copy copies the whole slot."""


class SlotCache:
    def __init__(
        self,
        model: Model,
        context: Context,
        adapters: Adapters,
        slots: Sequence[Slot],
        disk: DiskCache | None = None,
    ) -> None:
        self._options = options = model.options
        self._context, self._adapters, self._slots, self._n_swa = context, adapters, slots, model.n_swa
        self._disk = disk
        self._prompts = _prompt_cache(options.cache_bytes, context.n_ctx)
        self._saves_idle_slots = options.cache_idle_slots and self._prompts is not None
        if self._saves_idle_slots:
            log.debug("__TEST_TAG_CACHE_IDLE_SLOTS_ENABLED__")
        elif options.cache_idle_slots:
            log.info("--cache-idle-slots requires --cache-ram: it is off")
        forgets = self._n_swa > 0 or not context.can_truncate
        n_checkpoints = options.n_checkpoints if forgets and not options.embeddings else 0
        self._rules = CheckpointRules(n_checkpoints, options.checkpoint_min_step, context.n_batch, context.n_ubatch)
        self._least_gain = MIN_GAIN if options.kv_unified else max(MIN_GAIN, context.n_ctx_slot // COPY_COST)

    # -- start of a prompt ---------------------------------------------------------------------------------------------

    def start_or_poll_disk_read(self, job: Job, facts: SlotFacts) -> bool:
        """Return False while a prompt file is being read that is better for the job than all that is in memory."""
        request = job.request
        if self._disk is None or not isinstance(request, Generation) or not request.cache_prompt:
            return True
        n_common, n_cached = facts.n_common, facts.n_cached
        kept = self._prompts.best(n_common, n_cached, request.tokens, job.activation) if self._prompts else None
        if kept is not None:
            n_common, n_cached = kept.common(request.tokens, job.activation), len(kept.tokens)
        others = [self._candidate(other, job) for other in self._slots if other.id != facts.id]
        n_elsewhere = max((max(c.n_computed if c.can_cut else 0, c.n_coming) for c in others), default=0)
        return self._disk.start_or_poll_disk_read(job, n_common, n_cached, n_elsewhere)

    @property
    def is_reading_disk(self) -> bool:
        return self._disk is not None and self._disk.is_reading

    def forget_job(self, job: Job) -> None:
        """Drop a disk read for a job that has ended."""
        if self._disk is not None:
            self._disk.forget_job(job)

    def swap_prompt(self, slot: Slot, job: Job, facts: SlotFacts) -> None:
        """Save the chosen slot's contents to host memory, and load a better match for the prompt from there or disk."""
        request = job.request
        if not isinstance(request, Generation):
            return
        entry = self._disk.take(job) if self._disk is not None else None
        if entry is not None:
            log.info("slot %d: loading %d tokens from disk", slot.id, len(entry.tokens))
        looks = should_search_cache(facts, len(request.tokens), job.id_slot, self._options.slot_prompt_similarity)
        if self._prompts is not None and (looks or entry is not None):
            log.debug("updating prompt cache")
            self._save(slot)
            if entry is None:
                n_common = slot.common(request.tokens, job.activation)
                entry = self._prompts.take(n_common, len(slot.tokens), request.tokens, job.activation)
            self._prompts.trim()
        if entry is not None:
            self._put(slot, entry)

    def _put(self, slot: Slot, entry: CachedPrompt) -> None:
        self.clear(slot)
        n_positions = len(entry.tokens) - lag(entry.tokens)
        fits = len(entry.tokens) <= slot.n_ctx and self._context.write_state(slot.id, entry.state)
        if fits and self._context.last_position(slot.id) + 1 == n_positions:
            slot.set_contents(list(entry.tokens), entry.activation, entry.checkpoints)
        else:
            log.warning("slot %d: a cached prompt of %d tokens does not fit", slot.id, len(entry.tokens))
            self.clear(slot)

    def share_prefix(self, slot: Slot, job: Job) -> bool:
        """Copy the prompt's prefix from another slot that has computed it.

        Return False if it is better to wait for another slot that is computing it; see `waiters_ready`.
        """
        slot.leader = None
        request = job.request
        if not isinstance(request, Generation) or not request.cache_prompt or len(self._slots) == 1:
            return True
        candidates = (self._candidate(other, job) for other in self._slots if other is not slot)
        n_own = slot.common(request.tokens, job.activation)
        source = choose_source(n_own, candidates, len(request.tokens), self._least_gain)
        if source is not None:
            other = self._slots[source.slot]
            if not source.ready:
                assert other.task is not None
                slot.leader = Leader(other.id, other.task.job.id, source.n)
                return False
            self.copy(other, slot)
        return True

    def waiters_ready(self) -> list[Slot]:
        """Return the waiting slots whose leader has computed the prefix or has stopped, in order of arrival."""
        followers = [(slot, slot.leader) for slot in self._slots if slot.leader is not None]
        done = [slot for slot, leader in followers if not self._is_computing(leader)]
        return sorted(done, key=lambda slot: slot.task.job.id if slot.task else 0)

    def _is_computing(self, leader: Leader) -> bool:
        slot = self._slots[leader.slot]
        task = slot.task if slot.state is SlotState.PROMPT else None
        return task is not None and task.job.id == leader.job and len(slot.tokens) < leader.n

    def reuse_prefix(self, slot: Slot, job: Job) -> int:
        """Cut the slot's contents to a prefix of the prompt; return its length in tokens."""
        n_past = reusable_prefix(slot, job.request, job.activation, self._context, self._n_swa)
        slot.truncate(n_past)
        slot.activation = job.activation
        if not n_past:
            slot.shares_cells = False
        return n_past

    def copy(self, source: Slot, target: Slot) -> None:
        """Copy a slot's contents. In a unified KV pool both then share the same cells.

        With a sliding window the cells are copied, because the window moves on separately in each slot.
        """
        target.set_contents(list(source.tokens), source.activation, source.checkpoints)
        if self._options.kv_unified and self._n_swa and self._copy_cells(source, target):
            target.shares_cells = False
            return
        self._context.copy_sequence(source.id, target.id)
        if self._options.kv_unified:
            source.shares_cells = target.shares_cells = True

    def _copy_cells(self, source: Slot, target: Slot) -> bool:
        state = self._context.read_state(source.id)
        self._context.clear_sequence(target.id)
        return state is not None and self._context.write_state(target.id, state)

    # -- prefill -------------------------------------------------------------------------------------------------------

    def next_prompt_length(self, slot: Slot, n_prompt: int) -> int:
        """Return how many tokens of the slot's prompt the next batch may contain.

        It must end where a follower waits, where a checkpoint is due, before an image, and where the adapters change.
        """
        n_now = len(slot.tokens)
        ends = [other.leader.n for other in self._slots if other.leader is not None and other.leader.slot == slot.id]
        if self._rules.max_number and isinstance(slot.task, GenerationTask):
            ends += self._rules.boundaries(n_prompt, slot.task.request.user_starts, slot.checkpoints)
        if slot.task is not None and slot.task.request.media:
            ends.append(text_end(slot.task.request.media, n_now, n_prompt))
        end = min((end for end in ends if n_now < end < n_prompt), default=n_prompt)
        return slot.activation.uniform_length(n_now, end)

    def make_checkpoints(self, prompts: Iterable[tuple[int, int]]) -> None:
        """Make the checkpoints due before a batch. `prompts`: (slot, number of its prompt tokens in the batch)."""
        for id, n_next in prompts if self._rules.max_number else ():
            slot = self._slots[id]
            task, n_now = slot.task, len(slot.tokens)
            if not isinstance(task, GenerationTask):
                continue
            turns = task.request.user_starts
            if not self._rules.wanted(len(task.prompt), n_now, n_next, turns, slot.checkpoints):
                continue
            if slot.tokens[-1] < 0:
                continue  # an image: a sequence cannot be cut to its last token
            first, last = self._context.first_position(id), self._context.last_position(id)
            state = self._context.read_state(id, part=True) if first >= 0 else None
            if state is not None:
                new = Checkpoint(task.job.id, n_now, first, last, state)
                slot.checkpoints = self._rules.with_another(slot.checkpoints, new)

    # -- between prompts -----------------------------------------------------------------------------------------------

    def save_idle_slots(self) -> None:
        """Copy the contents of idle slots to host memory; in a unified KV pool also clear these slots."""
        for slot in self._slots if self._saves_idle_slots else ():
            if slot.idle and slot.tokens:
                if self._save(slot):
                    log.debug("slot %d: __TEST_TAG_CACHE_IDLE_SLOT__", slot.id)
                if self._options.kv_unified:
                    self.clear(slot)

    def clear_idle_slot(self) -> bool:
        """Clear the least recently used idle slot of a unified KV pool. Return False if there is none."""
        idle = [slot for slot in self._slots if slot.idle and slot.tokens]
        if not idle or not self._options.kv_unified:
            return False
        slot = min(idle, key=lambda slot: slot.last_used)
        log.warning("slot %d: dropping %d cached tokens, because the KV pool is full", slot.id, len(slot.tokens))
        self.clear(slot)
        return True

    def make_cells_private(self, slot: Slot) -> bool:
        """Copy shared cells before positions are shifted. Return False if there is no room: then the slot is empty."""
        return make_private(slot, self._context)

    def restore(self, slot: Slot, path: Path, read_media: ReadMedia | None) -> SlotFile:
        """Load a slot from a file. Its tokens count as computed with the default adapter scales."""
        slot.shares_cells = False
        return restore(slot, self._context, path, activation(self._adapters.scales), read_media)

    def erase(self, slot: Slot) -> int:
        n_tokens = len(slot.tokens)
        self.clear(slot)
        return n_tokens

    def finish_task(self, slot: Slot, *, keeps: bool) -> None:
        """Clear the slot after its task if not `keeps`. The rows of an incomplete image are removed in any case."""
        if not keeps or (slot.media_done and not self._context.truncate(slot.id, slot.position)):
            self.clear(slot)
        slot.media_done = 0

    def clear(self, slot: Slot) -> None:
        self._context.clear_sequence(slot.id)
        slot.set_contents([], slot.activation)
        slot.shares_cells = False

    # -- unload --------------------------------------------------------------------------------------------------------

    def save_to_disk(self, *, for_good: bool) -> None:
        """Save the contents of idle slots and of host memory to disk. `for_good`: the process ends too."""
        if self._disk is not None:
            self._disk.save(self._savable_prompts(), for_good=for_good)

    def _savable_prompts(self) -> Iterator[SavablePrompt]:
        for slot in self._slots:
            if slot.idle and slot.tokens:
                n_bytes, read = self._context.state_size(slot.id), partial(self._context.read_state, slot.id)
                yield SavablePrompt(slot.tokens, slot.activation, slot.checkpoints, n_bytes, read, slot.last_used)
        for entry in self._prompts.entries if self._prompts is not None else ():
            given = partial(_given, entry.state)
            yield SavablePrompt(entry.tokens, entry.activation, entry.checkpoints, entry.n_bytes, given, entry.used)

    def _save(self, slot: Slot) -> bool:
        if self._prompts is None or not slot.tokens:
            return False
        n_bytes = self._context.state_size(slot.id)
        saved = self._prompts.store(
            slot.tokens,
            slot.activation,
            slot.checkpoints,
            n_bytes,
            lambda: self._context.read_state(slot.id),
            slot.last_used,
        )
        self._prompts.trim()
        return saved

    def _candidate(self, other: Slot, job: Job) -> Candidate:
        prompt, task = job.request.tokens, other.task
        if isinstance(task, EmbeddingTask):
            return Candidate(other.id, 0)
        n_computed, n_coming = other.common(prompt, job.activation), 0
        if other.state is SlotState.PROMPT and task is not None:
            n_coming = min(common_prefix(task.prompt, prompt), other.activation.common_length(job.activation))
        is_all = n_computed == len(other.tokens) and not other.media_done
        if not self._context.can_truncate:
            can_cut = is_all and n_computed < len(prompt)
        else:
            can_cut = not self._n_swa or is_all or self._can_truncate_to(other, n_computed)
        return Candidate(other.id, n_computed, n_coming, can_cut)

    def _can_truncate_to(self, slot: Slot, n: int) -> bool:
        return 0 <= self._context.first_position(slot.id) < max(0, slot.position_after(n) - self._n_swa)


def _given(state: StateBytes) -> StateBytes:
    return state


def _prompt_cache(max_bytes: int | None, n_ctx: int) -> PromptCache | None:
    return None if max_bytes == 0 else PromptCache(max_bytes, n_ctx)
