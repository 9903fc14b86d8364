"""The load client: one connection per request over a raw asyncio protocol, each piece of the answer stamped on arrival.

It must cost less than what it measures, so it parses HTTP in C (httptools) and looks at no JSON while the clock runs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

Address = tuple[str, int] | str  # host and port, or the path of a unix socket
EVENT = b"data: {"
LIMIT_S = 600.0  # longest answer waited for: above any measure here, below a person's patience


@dataclass
class HttpAnswer:
    """What came back: the status, the body and when each event of a stream arrived (seconds, monotonic)."""

    sent: float = 0.0
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    events: list[float] = field(default_factory=list)
    ended: float = 0.0
    fault: str = ""

    @property
    def good(self) -> bool:
        return self.status == 200 and not self.fault

    @property
    def first_event(self) -> float:
        """Seconds from sending to the first event of a stream."""
        return self.events[0] - self.sent

    def json(self) -> Any:
        return json.loads(bytes(self.body))


def encode(method: str, path: str, payload: object = None, *, keep_alive: bool = False) -> bytes:
    """A whole request; JSON when there is a payload."""
    body = b"" if payload is None else json.dumps(payload).encode()
    connection = "keep-alive" if keep_alive else "close"
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}", f"Connection: {connection}"]
    lines += ["Content-Type: application/json"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpExchange(asyncio.Protocol):
    """One request and its answer on a connection of their own."""

    def __init__(self, request: bytes, done: asyncio.Future[HttpAnswer]) -> None:
        self.request = request
        self.done = done
        self.answer = HttpAnswer()
        self.parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own transports are no subclass
        self.answer.sent = time.monotonic()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(f"bad HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(f"connection lost: {error or 'closed by the server'}")
        if not self.done.done():
            self.done.set_result(self.answer)

    def on_body(self, piece: bytes) -> None:
        count = piece.count(EVENT)
        if count:
            self.answer.events.extend([time.monotonic()] * count)
        self.answer.body += piece

    def on_message_complete(self) -> None:
        self._finish("")

    def _finish(self, fault: str) -> None:
        if self.answer.ended:
            return
        self.answer.status = self.parser.get_status_code() if self.answer.body or not fault else 0
        self.answer.fault = fault
        self.answer.ended = time.monotonic()
        if self.transport is not None:
            self.transport.abort()  # the answer is handed over once the connection is gone


async def exchange(address: Address, request: bytes) -> HttpAnswer:
    """Send one encoded request; a refused or broken connection is a fault of the answer, never an exception."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[HttpAnswer] = loop.create_future()
    started = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_S):
            if isinstance(address, str):
                await loop.create_unix_connection(lambda: HttpExchange(request, done), address)
            else:
                await loop.create_connection(lambda: HttpExchange(request, done), *address)
            return await done
    except (OSError, TimeoutError) as error:
        return HttpAnswer(sent=started, ended=time.monotonic(), fault=f"{type(error).__name__}: {error}")


def post(address: Address, path: str, payload: object) -> Awaitable[HttpAnswer]:
    return exchange(address, encode("POST", path, payload))


def get(address: Address, path: str) -> Awaitable[HttpAnswer]:
    return exchange(address, encode("GET", path))
