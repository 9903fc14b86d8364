"""A request from its arrival to its last event, and what a single slot does for it.

`Job` is shared with the event loop, which delivers its events and may cancel it; tasks are the engine thread's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..adapters.activation import BASE
from ..llama.vocab import Vocab
from ..messages import Embedded, Embedding, Event, Failed, Finished, Generation, Sink, seed_of
from ..sampling.sampler import Sampler
from .choice import Choice


class Job:
    __slots__ = ("_n_open", "activation", "cancelled", "id", "n_choices", "request", "sink")

    def __init__(self, id: int, request: Generation | Embedding, sink: Sink) -> None:
        """`id` grows with every arrival."""
        self.id = id
        self.request = request
        self.sink = sink
        self.n_choices = request.n if isinstance(request, Generation) else 1
        self.activation = BASE  # of adapters; decided by the engine thread when the job gets its slots
        self.cancelled = False  # never taken back
        self._n_open = self.n_choices

    @property
    def id_slot(self) -> int:
        return self.request.id_slot if isinstance(self.request, Generation) else -1

    @property
    def done(self) -> bool:
        """On the event loop: the last event has been delivered."""
        return self._n_open == 0

    def deliver(self, event: Event) -> None:
        """On the event loop."""
        if self.cancelled:
            return
        if isinstance(event, Finished):
            self._n_open -= 1
        elif isinstance(event, Failed | Embedded):
            self._n_open = 0
        self.sink(event)


class EmbeddingTask:
    """The vectors of one input."""

    __slots__ = ("job", "request")

    def __init__(self, job: Job, request: Embedding) -> None:
        self.job, self.request = job, request

    @property
    def prompt(self) -> Sequence[int]:
        return self.request.tokens

    def close(self) -> None:
        pass


class GenerationTask:
    """One choice of a generation. Those after the first wait for its prompt."""

    __slots__ = ("choice", "job", "request", "sampler", "shares_prompt")

    def __init__(self, job: Job, request: Generation, index: int, vocab: Vocab, n_predict: int, special: bool) -> None:
        """Raises ApiError for parameters no sampler takes."""
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
    """All or none: raises ApiError for parameters no sampler takes."""
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
