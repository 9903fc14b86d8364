"""A job is a request from its arrival to its last event; a task is the part of it that one slot works on.

`Job` is shared with the event loop, which delivers its events and may cancel it; only the engine thread uses tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ..adapters.activation import BASE
from ..llama.vocab import Vocab
from ..messages import Embedded, Embedding, Event, Failed, Finished, Generation, Share, Sink, seed_of
from ..sampling.sampler import Sampler
from .choice import Choice

ALONE = Share()
"""A request with one prompt."""


class Job:
    __slots__ = ("_n_open", "activation", "cancelled", "id", "n_choices", "request", "share", "sink")

    def __init__(self, id: int, request: Generation | Embedding, sink: Sink, share: Share = ALONE) -> None:
        """`id` increases with each arrival."""
        self.id = id
        self.request = request
        self.sink = sink
        self.share = share if share is not ALONE else Share(request=-id - 1)
        self.n_choices = request.n if isinstance(request, Generation) else 1
        self.activation = BASE  # of adapters; set by the engine thread when the job gets its slots
        self.cancelled = False  # never reset
        self._n_open = self.n_choices

    @property
    def id_slot(self) -> int:
        return self.request.id_slot if isinstance(self.request, Generation) else -1

    @property
    def done(self) -> bool:
        """True if the last event has been delivered. Use it on the event loop only."""
        return self._n_open == 0

    def deliver(self, event: Event) -> None:
        """Pass an event to the sink, unless the job is cancelled. Runs on the event loop."""
        if self.cancelled:
            return
        if isinstance(event, Finished):
            self._n_open -= 1
        elif isinstance(event, Failed | Embedded):
            self._n_open = 0
        self.sink(event)


class EmbeddingTask:
    """Computes the vectors of one input."""

    __slots__ = ("job", "request")

    def __init__(self, job: Job, request: Embedding) -> None:
        self.job, self.request = job, request

    @property
    def prompt(self) -> Sequence[int]:
        return self.request.tokens

    def close(self) -> None:
        pass


class GenerationTask:
    """Generates one choice of a request. All choices after the first wait until the first has computed the prompt."""

    __slots__ = ("choice", "job", "request", "sampler", "shares_prompt")

    def __init__(self, job: Job, request: Generation, index: int, vocab: Vocab, n_predict: int, special: bool) -> None:
        """Raises ApiError for invalid sampling parameters."""
        self.job, self.request = job, request
        self.shares_prompt = index > 0
        self.choice = Choice(request, index, request.n_predict if request.n_predict != -1 else n_predict, special)
        sampling = request.sampling
        self.sampler = Sampler(replace(sampling, seed=seed_of(sampling.seed, index)), vocab)

    @property
    def prompt(self) -> Sequence[int]:
        return self.request.tokens

    def close(self) -> None:
        self.sampler.close()


Task = EmbeddingTask | GenerationTask


def tasks_of(job: Job, vocab: Vocab, n_predict: int, special: bool) -> list[Task]:
    """Create the tasks of a job, one per choice. Raises ApiError for invalid sampling parameters."""
    request = job.request
    if isinstance(request, Embedding):
        return [EmbeddingTask(job, request)]
    tasks: list[Task] = []
    try:
        for index in range(request.n):
            tasks.append(GenerationTask(job, request, index, vocab, n_predict, special))
    except BaseException:
        for task in tasks:
            task.close()
        raise
    return tasks
