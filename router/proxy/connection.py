"""One HTTP/1.1 connection to a worker: send a request and stream its response.

`pool` creates and keeps connections; the proxy sees only the `WorkerResponse`. This is the hot path: a request is one
write, a response that fits into one read is complete when its head is parsed, and nothing is parsed twice.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from typing import cast

import httptools

HIGH_WATER = 256 * 1024
"""Bytes of a response that are buffered for a slow client before reading from the worker pauses."""
ONE_WRITE_LIMIT = 64 * 1024
"""Bodies up to this many bytes are sent in one write with their head."""

Header = tuple[bytes, bytes]


class UpstreamError(Exception):
    """The exchange failed; the text is a reason for the user."""


class Unreachable(UpstreamError):
    """No connection could be made, so the request was not sent."""


class ConnectionLost(UpstreamError):
    """The connection ended or timed out after the request was sent, before the head of a response arrived."""


class ResponseTruncated(UpstreamError):
    """The connection ended in the middle of the response."""


class WorkerResponse:
    """The response to one request: its head is complete, its body is streamed. `close()` must always be called."""

    __slots__ = ("_connection", "headers", "reason", "status")

    def __init__(self, connection: Connection, status: int, reason: str, headers: list[Header]) -> None:
        self._connection = connection
        self.status = status
        self.reason = reason
        self.headers = headers

    @property
    def complete(self) -> bool:
        """True if the whole body has arrived: the next `read()` returns it without waiting."""
        return self._connection.complete

    async def read(self) -> bytes:
        """Wait for data and return all that arrived since the last call; b"" at the end. Raises ResponseTruncated."""
        return await self._connection.read()

    def close(self) -> None:
        """Return the connection to the pool if the response is complete. Else close it, so that the worker stops."""
        self._connection.release()


def quick_ack(tcp: socket.socket) -> None:
    """Acknowledge received data immediately.

    Many programs send head and body in two writes, and TCP delays the second one until the first is acknowledged. That
    would cost 40 ms per response.
    """
    if hasattr(socket, "TCP_QUICKACK"):
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Connection(asyncio.Protocol):
    """One connection, with at most one exchange at a time. It also receives the callbacks of its HTTP parser."""

    def __init__(
        self,
        endpoint: str,
        timeout: float | None,
        on_idle: Callable[[Connection], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        """`on_idle`: called when it can be used for the next exchange. `on_closed`: called when it ended while idle."""
        self.endpoint = endpoint
        self.usable = True
        self.idle_since = 0.0
        self.answered = False  # a byte of the current response has arrived
        self.complete = False
        self._tell_idle = on_idle
        self._tell_closed = on_closed
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until connection_made
        self._parser = httptools.HttpResponseParser(self)
        self._busy = False
        self._waiter: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._last_byte = 0.0
        self._tcp: socket.socket | None = None
        self._reset("")

    def _reset(self, method: str) -> None:
        self.answered = self.complete = False
        self._bodyless = method == "HEAD"
        self._error: UpstreamError | None = None
        self._reply: WorkerResponse | None = None
        self._reason = ""
        self._headers: list[Header] = []
        self._chunks: list[bytes] = []
        self._held = 0  # bytes in chunks
        self._paused = False
        self._until_close = False

    @property
    def quiet_for(self) -> float:
        """Seconds since the last byte of the current or last response; infinite while a request has no answer yet."""
        return self._loop.time() - self._last_byte if self.answered else math.inf

    # -- called by the proxy

    async def exchange(self, method: str, head: bytes, body: bytes) -> WorkerResponse:
        self._reset(method)
        self._busy = True
        self._last_byte = self._loop.time()
        if self._timeout is not None:
            self._watch = self._loop.call_later(self._timeout, self._check_silence, self._timeout)
        if len(body) <= ONE_WRITE_LIMIT:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        try:
            while self._reply is None:
                if self._error is not None:
                    raise self._error
                await self._wait()
        except BaseException:
            self.release()
            raise
        return self._reply

    async def read(self) -> bytes:
        while not self._chunks:
            if self.complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        self._resume()
        return data

    def release(self) -> None:
        if not self._busy:
            return
        self._busy = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if not (self.complete and self.usable):
            self.close()
            return
        self._resume()
        self._reply = None
        self._chunks.clear()
        self.idle_since = self._loop.time()
        self._tell_idle(self)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def abort(self, why: str) -> None:
        """End the current exchange as if the worker had closed the connection."""
        if self._busy and not self.complete:
            self._fail(why)
            self._transport.abort()

    def close(self) -> None:
        self.usable = False
        self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, why: str) -> None:
        self.usable = False
        if self._error is None:
            self._error = ResponseTruncated(why) if self._reply is not None else ConnectionLost(why)
        self._wake()

    def _check_silence(self, limit: float) -> None:
        """Time out a silent exchange. Its only timer checks when the last byte arrived, so bytes do not restart it."""
        left = self._last_byte + limit - self._loop.time()
        if left > 0 or self._paused:
            self._watch = self._loop.call_later(left if left > 0 else limit, self._check_silence, limit)
        else:
            self._fail(f"no byte arrived for {limit:g} s")
            self._transport.abort()

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if "/" not in self.endpoint:
            self._tcp = transport.get_extra_info("socket")

    def data_received(self, data: bytes) -> None:
        if not self._busy:  # data without a request: the connection is not usable
            self._tell_closed(self)
            self.close()
            return
        self.answered = True
        self._last_byte = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                self._fail(f"the response is not valid HTTP: {error}")
            self.close()
            return
        if self._tcp is not None and not self.complete:
            quick_ack(self._tcp)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if not self._busy:
            self._tell_closed(self)
        elif self._until_close and exc is None:
            self.complete = True
            self._wake()
        elif not self.complete:
            self._fail(f"the connection failed ({exc})" if exc else "the connection was closed")

    # -- called by the parser

    def on_status(self, status: bytes) -> None:
        self._reason = status.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # interim responses such as 100 Continue: the final response follows
            self._headers, self._reason = [], ""
            return
        self._reply = WorkerResponse(self, status, self._reason, self._headers)
        if self._bodyless or status in (204, 304):
            self.complete = True
            self.usable = self.usable and not self._bodyless and self._parser.should_keep_alive()
        else:
            self._until_close = not any(
                n.lower() in (b"content-length", b"transfer-encoding") for n, _ in self._headers
            )
        self._wake()

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._held += len(chunk)
        if self._held > HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._reply is None:
            return
        self.complete = True
        self.usable = self.usable and self._parser.should_keep_alive()
        self._wake()
