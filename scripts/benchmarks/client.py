"""The load client: sends each request on a new connection and records the arrival time of each event of the answer.

It must take less CPU time than the servers that it measures. So it uses raw asyncio protocols, parses HTTP in C
(httptools) and parses no JSON while time is measured.
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
LIMIT_S = 600.0  # timeout of an answer: longer than any measurement here


@dataclass
class HttpAnswer:
    """An answer: its status, its body and the arrival time of each event of a stream (seconds, monotonic)."""

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
        """The seconds from sending the request to the first event of the stream."""
        return self.events[0] - self.sent

    def json(self) -> Any:
        return json.loads(bytes(self.body))


def encode(method: str, path: str, payload: object = None, *, keep_alive: bool = False) -> bytes:
    """Return the bytes of a request, with `payload` as its JSON body unless that is None."""
    body = b"" if payload is None else json.dumps(payload).encode()
    connection = "keep-alive" if keep_alive else "close"
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}", f"Connection: {connection}"]
    lines += ["Content-Type: application/json"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpExchange(asyncio.Protocol):
    """One request and its answer on a separate connection."""

    def __init__(self, request: bytes, done: asyncio.Future[HttpAnswer]) -> None:
        self.request = request
        self.done = done
        self.answer = HttpAnswer()
        self.parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not a subclass
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
            self.transport.abort()  # the answer is returned when the connection is closed


async def exchange(address: Address, request: bytes) -> HttpAnswer:
    """Send one encoded request and return its answer. If the connection fails, `fault` is set; nothing is raised."""
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
