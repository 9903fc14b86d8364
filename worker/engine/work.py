"""Lists the work of all slots for the scheduler. Called by `core` before each step; does not change a slot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .batching.decode import BatchDecoder
from .batching.jobs import GenerationTask, Task
from .batching.media_tokens import chunk_at, content_of
from .batching.scheduler import BatchLimits, Kind, SlotWork
from .batching.slots import Slot, SlotState
from .cache.slot_memory import SlotCache
from .llama.context import Context
from .llama.errors import EncodeError
from .llama.model import Model
from .media.encoder import MediaEncoder
from .messages import MediaChunk

Failure = tuple[Task, EncodeError]


def slot_work(
    slots: Iterable[Slot], context: Context, slot_cache: SlotCache, media_encoder: MediaEncoder | None
) -> tuple[Sequence[SlotWork], Sequence[Failure]]:
    """Return the work of the busy slots, and the tasks that fail because one of their images could not be encoded.

    Starts the encoding of images that are needed next; slots that wait for an encoding have no work.
    """
    work, failures = list[SlotWork](), list[Failure]()
    for slot in slots:
        task = slot.task
        if task is None or slot.state is SlotState.WAITING:
            continue
        adapters = slot.activation.at(len(slot.tokens))
        generating = slot.state is SlotState.GENERATING
        n_left = 0 if generating else slot_cache.next_prompt_length(slot, len(task.prompt))
        kind: Kind = "generation" if isinstance(task, GenerationTask) else "embedding"
        whole = kind == "embedding" and not context.embeds_in_pieces
        if chunk := None if generating else chunk_at(task.request.media, len(slot.tokens)):
            try:
                if not _is_encoded(task, chunk, media_encoder):
                    continue
            except EncodeError as error:
                failures.append((task, error))
                continue
            kind, n_left, whole = "media", chunk.n_tokens - slot.media_done, content_of(chunk).non_causal
        work.append(SlotWork(slot.id, kind, n_left, whole, task.job.id, slot.last_turn, adapters, len(slot.draft)))
    return work, failures


def limits_of(model: Model, context: Context, decoder: BatchDecoder) -> BatchLimits:
    # With a sliding window, a batch with drafts must be one physical batch. If it were split, the first part could
    # remove old positions from the window that are needed again when a draft is rejected.
    n_with_drafts = context.n_ubatch if model.n_swa else context.n_batch
    mix = model.options.continuous_batching
    return BatchLimits(context.n_batch, decoder.n_prompt_with_streams, mix, n_with_drafts)


def _is_encoded(task: Task, chunk: MediaChunk, media_encoder: MediaEncoder | None) -> bool:
    assert media_encoder is not None
    return media_encoder.get_or_start(task.job, chunk) is not None
