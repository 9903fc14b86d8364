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

    def submit(self, request: Generation, sink: Sink) -> Ticket: ...


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
    """Submit the generations and yield their mailbox; cancel them at the end of the block."""
    mailbox = Mailbox()
    tickets: list[Ticket] = []
    offset = 0
    try:
        for generation in generations:
            tickets.append(engine.submit(generation, partial(mailbox.put, offset)))
            offset += generation.n
        yield mailbox
    finally:
        for ticket in tickets:
            ticket.cancel()


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
        whole = dialect.full_body(await _collect(mailbox, total))
        if before_end is not None:
            await before_end()
        return json_response(whole)


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
