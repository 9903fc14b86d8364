"""Encodes the images and audio of requests on a separate thread, while the engine thread computes the text of all
requests. Owned by the engine thread, through `core`.

A job's media are encoded when its prompt begins, as many in one batch as the projector accepts. The next batch starts
when the last chunk of the previous one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..batching.decode import BatchDecoder, PreparedBatch
from ..batching.jobs import Job, Task
from ..batching.media_tokens import chunk_at, content_of
from ..batching.scheduler import BatchPlan
from ..batching.slots import Slot
from ..messages import MediaChunk

if TYPE_CHECKING:
    from .projector import Embeddings, Projector


class MediaEncoder:
    def __init__(self, projector: Projector, wake: Callable[[], None]) -> None:
        """Start the thread. `wake` is called from another thread each time an encoding has finished."""
        self.projector, self._wake = projector, wake
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._requested: dict[Job, tuple[Sequence[MediaChunk], Future[list[Embeddings]]]] = {}

    def close(self) -> None:
        """Wait for the encoding that is running, which cannot be interrupted, and free the projector."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.projector.close()

    @property
    def pending(self) -> bool:
        return any(not future.done() for _, future in self._requested.values())

    def get_or_start(self, job: Job, chunk: MediaChunk) -> Embeddings | None:
        """Return the embeddings of the chunk, or start encoding it and return None while they are not ready.

        Raises the exception that encoding has raised.
        """
        chunks, future = self._requested.get(job, ((), None))
        if future is None or chunk not in chunks:
            self._ask(job, chunk)
            return None
        if not future.done():
            return None
        place, encoded = chunks.index(chunk), future.result()
        if place >= len(encoded):  # it did not fit into the batch
            self._ask(job, chunk)
            return None
        return encoded[place]

    def begin(self, slot: Slot, task: Task) -> None:
        """Start encoding the first chunk of a new prompt, while the text before it is computed."""
        coming = (chunk for chunk in task.request.media if chunk.start >= len(slot.tokens))
        if first := next(coming, None):
            self._ask(task.job, first)

    def fill(self, plan: BatchPlan, slots: Sequence[Slot], decoder: BatchDecoder) -> PreparedBatch:
        """Return the batch of a media plan: one image or audio chunk of one slot, or a part of it."""
        slot = slots[plan.prompts[0][0]]
        task = slot.task
        chunk = chunk_at(task.request.media, len(slot.tokens)) if task is not None else None
        assert task is not None
        assert chunk is not None
        vectors, content = self.get_or_start(task.job, chunk), content_of(chunk)
        assert vectors is not None
        if slot.media_done + plan.prompts[0][1] == chunk.n_tokens:
            self._start_next(task.job, chunk)
        positions = self.projector.positions(content, slot.position)
        return decoder.fill_media(plan, vectors, positions, causal=not content.non_causal)

    def end(self, job: Job) -> None:
        """Free the memory of the job's media. Called when its prompt is computed or the job is cancelled."""
        _, future = self._requested.pop(job, ((), None))
        if future is not None:
            future.cancel()
        for chunk in job.request.media:
            content_of(chunk).prepared = None

    def _start_next(self, job: Job, chunk: MediaChunk) -> None:
        """Start encoding the next chunk if `chunk`, which is about to be read, is the last encoded one."""
        chunks, future = self._requested[job]
        n_encoded = len(future.result())
        if chunk is chunks[n_encoded - 1] and n_encoded < len(chunks):
            self._ask(job, chunks[n_encoded])

    def _ask(self, job: Job, first: MediaChunk) -> None:
        chunks = [chunk for chunk in job.request.media if chunk.start >= first.start]
        prepared = [data for chunk in chunks if (data := content_of(chunk).prepared) is not None]
        future = self._thread.submit(self.projector.encode, prepared)
        self._requested[job] = chunks, future
        future.add_done_callback(lambda _: self._wake())
