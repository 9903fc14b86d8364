"""Sends one request's engine events to its client, as one JSON body or as a stream.

The engine puts events into the request's mailbox on the event loop's thread. The request's handler takes the collected
events, renders them with its dialect and writes them at once. When the handler ends, for any reason, its tickets are
cancelled: a client's disconnect ends the handler and so frees its slots, unless its stream is `resumable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from aiohttp import web
from llama_corral.common.base.errors import ApiError
from llama_corral.common.web.access_log import note_failure
from llama_corral.common.web.application import json_response

from ...engine.messages import Begun, Event, Failed, Finished, Generation, Piece, Progress, Sink
from .dialect import Dialect
from .resumable import open_stream, set_outlives_client


class Ticket(Protocol):
    def cancel(self) -> None: ...


class Engine(Protocol):
    """The part of a loaded model that answers use."""

    def submit(self, request: Generation, sink: Sink, *, checked: bool = False) -> Ticket:
        """Submit a request; `checked`: `check` has accepted it already."""

    def check(self, request: Generation) -> None:
        """Raise the ApiError that `submit` would raise."""

    @property
    def window(self) -> int:
        """The number of prompts that a request should have submitted at a time."""


class Mailbox:
    """The pending events of all prompts of one request, each with the index of its prompt's first choice."""

    def __init__(self) -> None:
        self._events: list[tuple[int, Event]] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, offset: int, event: Event) -> None:
        self._events.append((offset, event))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[tuple[int, Event]]:
        """Wait for at least one event and return all pending ones; an empty list if `wake` ended the wait."""
        if not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        return events

    def wake(self) -> None:
        """Make `take` return without an event, for a ping."""
        self._wake()


@contextmanager
def submitted(engine: Engine, generations: Sequence[Generation]) -> Iterator[Mailbox]:
    """Submit the generations, some at a time, and yield their mailbox; cancel them at the end of the block."""
    submissions = _Submissions(engine, generations)
    try:
        submissions.begin()
        yield submissions.mailbox
    finally:
        submissions.cancel()


class _Submissions:
    """Keeps `window` prompts of a request submitted, so that a long list of prompts does not fill the queue."""

    def __init__(self, engine: Engine, generations: Sequence[Generation]) -> None:
        self.mailbox = Mailbox()
        self._engine = engine
        self._generations = generations
        self._next = self._offset = 0
        self._tickets: list[Ticket] = []
        self._open: dict[int, int] = {}  # by prompt: the number of its choices that are not finished
        self._cancelled = False

    def begin(self) -> None:
        if len(self._generations) > 1:
            for generation in self._generations:  # refuse the whole request before anything is computed
                self._engine.check(generation)
        for _ in range(self._engine.window if len(self._generations) > 1 else 1):
            self._submit_next()

    def cancel(self) -> None:
        self._cancelled = True
        for ticket in self._tickets:
            ticket.cancel()

    def _submit_next(self) -> None:
        if self._cancelled or self._next == len(self._generations):
            return
        index, generation = self._next, self._generations[self._next]
        self._open[index] = generation.n
        receive = partial(self._receive, index, self._offset)
        self._tickets.append(self._engine.submit(generation, receive, checked=len(self._generations) > 1))
        self._next, self._offset = index + 1, self._offset + generation.n

    def _receive(self, index: int, offset: int, event: Event) -> None:
        self.mailbox.put(offset, event)
        if not isinstance(event, Finished):
            return
        self._open[index] -= 1
        if self._open[index]:
            return
        try:
            self._submit_next()
        except ApiError as error:
            self.mailbox.put(self._offset, Failed(error))


OFF_LOOP_PROBS = 1000
"""An answer with more probabilities is made on another thread: this takes over 5 ms, which would delay others."""
BeforeEnd = Callable[[], Awaitable[None]]


async def respond(
    request: web.Request,
    engine: Engine,
    generations: Sequence[Generation],
    dialect: Dialect,
    ping_interval: float,
    before_end: BeforeEnd | None = None,
) -> web.StreamResponse:
    """Generate and send the whole answer. An error before the first byte is raised, also for streams.

    `before_end` is awaited when the answer is complete, before the client receives its end.
    """
    total = sum(generation.n for generation in generations)
    set_outlives_client(request, streams=generations[0].stream)
    with submitted(engine, generations) as mailbox:
        if generations[0].stream:
            return await _stream(request, mailbox, dialect, total, ping_interval, before_end)
        results = await _collect(mailbox, total)
        n_probs = sum(len(result.probs) for result in results) * (1 + generations[0].sampling.n_probs)
        if n_probs > OFF_LOOP_PROBS:
            response = await asyncio.to_thread(lambda: json_response(dialect.full_body(results)))
        else:
            response = json_response(dialect.full_body(results))
        if before_end is not None:
            await before_end()
        return response


async def _collect(mailbox: Mailbox, total: int) -> list[Finished]:
    results: dict[int, Finished] = {}
    while len(results) < total:
        for offset, event in await mailbox.take():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                results[offset + event.index] = event
    return [results[index] for index in sorted(results)]


async def _stream(
    request: web.Request,
    mailbox: Mailbox,
    dialect: Dialect,
    total: int,
    ping_interval: float,
    before_end: BeforeEnd | None,
) -> web.StreamResponse:
    events = await mailbox.take()
    for _, event in events:
        if isinstance(event, Failed):
            raise event.error
    response = open_stream(request, dialect.content_type)
    await response.prepare(request)
    with _Pings(mailbox, ping_interval) as pings:
        while True:
            chunk, n_finished, failure = _render(events, dialect)
            total -= n_finished
            if failure is not None or total == 0:
                break
            if not events:
                chunk = dialect.ping
            if chunk:
                await response.write(chunk)
                pings.written()
            events = await mailbox.take()
    if failure is not None:
        note_failure(request, failure.message)
    else:
        if before_end is not None:
            await before_end()
        chunk += dialect.end()
    await response.write(chunk)
    await response.write_eof()
    return response


def _render(events: Sequence[tuple[int, Event]], dialect: Dialect) -> tuple[bytes, int, ApiError | None]:
    """Return the events' bytes, the number of choices that they finish, and the error if one of them is a failure."""
    chunks: list[bytes] = []
    n_finished = 0
    for offset, event in events:
        match event:
            case Begun():
                chunks.append(dialect.begun(offset + event.index, event))
            case Piece():
                chunks.append(dialect.piece(offset + event.index, event))
            case Progress():
                chunks.append(dialect.progress(offset + event.index, event))
            case Finished():
                chunks.append(dialect.finished(offset + event.index, event))
                n_finished += 1
            case Failed():
                chunks.append(dialect.failed(event.error))
                return b"".join(chunks), n_finished, event.error
    return b"".join(chunks), n_finished, None


class _Pings:
    """Wakes the mailbox after each `interval` seconds without a write; uses one timer, not one per token."""

    def __init__(self, mailbox: Mailbox, interval: float) -> None:
        self._mailbox = mailbox
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> _Pings:
        if self._interval > 0:
            self._timer = self._loop.call_later(self._interval, self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def written(self) -> None:
        self._last = self._loop.time()

    def _tick(self) -> None:
        due = self._last + self._interval
        now = self._loop.time()
        if now >= due:
            self._mailbox.wake()
            due = now + self._interval
        self._timer = self._loop.call_at(due, self._tick)
