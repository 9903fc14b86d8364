"""Clients that send slowly, nothing at all, or end their side early; and the limit of open files."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from certificates import make_certificate
from llama_corral.common.web import client_connection, listen, room
from llama_corral.common.web.application import Route, event_stream
from llama_corral.common.web.listen import Listening
from web_tools import serving, settings

PATIENCE = 20.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(listening: Listening, data: bytes, buffer: int = 0) -> AsyncIterator[Streams]:
    """`buffer`: bytes that the client's side takes before it reads; 0: as many as the kernel likes."""
    tcp = socket.socket()
    if buffer:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    tcp.setblocking(False)
    await asyncio.get_running_loop().sock_connect(tcp, ("127.0.0.1", listening.port))
    reader, writer = await asyncio.open_connection(sock=tcp, limit=buffer or 1 << 16)
    writer.write(data)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def get(path: str, version: str = "1.1") -> bytes:
    return f"GET {path} HTTP/{version}\r\nHost: x\r\n\r\n".encode()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return everything until the server closes the connection, without probes."""
    async with asyncio.timeout(PATIENCE):
        return (await reader.read()).replace(CONTINUE, b"")


# -- half-closed connections -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("path", ["/health", "/slow"])
async def test_a_client_that_ends_its_side_gets_its_answer(path: str, version: str) -> None:
    async with serving(settings()) as (_, listening, _), connected(listening, get(path, version)) as (reader, writer):
        writer.write_eof()
        answer = await rest(reader)
        assert answer.startswith(b"HTTP/1.%b 200" % version[-1:].encode())
        assert answer.count(b"HTTP/1.") == 1


async def test_the_end_of_a_side_may_come_in_any_packet() -> None:
    body = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    async with serving(settings()) as (_, listening, _):
        async with connected(listening, get("/slow") * 3) as (reader, writer):
            writer.write_eof()
            assert (await rest(reader)).count(b"HTTP/1.1 200") == 3, "all requests before the end are answered"
        async with connected(listening, body) as (reader, writer):
            writer.write(b"{}")
            writer.write_eof()
            assert (await rest(reader)).startswith(b"HTTP/1.1 200")
        async with connected(listening, body + b"{") as (reader, writer):
            writer.write_eof()
            assert await rest(reader) == b"", "a part of a body is not a request"


async def test_a_half_closed_client_that_leaves_is_noticed() -> None:
    async with serving(settings()) as (_, listening, cancelled):
        async with connected(listening, get("/hang")) as (reader, writer):
            writer.write_eof()
            await asyncio.wait_for(reader.readexactly(len(CONTINUE)), PATIENCE)
            assert not cancelled.is_set()
        await asyncio.wait_for(cancelled.wait(), PATIENCE)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_that_closes_at_once_is_noticed(version: str) -> None:
    async with serving(settings()) as (_, listening, cancelled):
        async with connected(listening, get("/hang", version)):
            pass
        await asyncio.wait_for(cancelled.wait(), PATIENCE)


async def test_the_end_of_a_side_during_the_answer_is_a_disconnect() -> None:
    async with (
        serving(settings()) as (_, listening, cancelled),
        connected(listening, get("/hang?stream=1")) as (reader, writer),
    ):
        await reader.readuntil(b"data: 1")
        writer.write_eof()
        await asyncio.wait_for(cancelled.wait(), PATIENCE)


async def _stream_slowly(request: web.Request) -> web.StreamResponse:
    stream = event_stream()
    await stream.prepare(request)
    for number in range(10):
        await stream.write(b"data: %d\n\n" % number)
        await asyncio.sleep(0.05)
    return stream


async def _answer_much(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"x" * MUCH)


async def _answer_into_a_small_buffer(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return web.Response(body=b"x" * 25_000)


MUCH = 16 << 20
ROUTES: list[Route] = [
    ("GET", "/stream", _stream_slowly),
    ("GET", "/much", _answer_much),
    ("GET", "/small-buffer", _answer_into_a_small_buffer),
]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_that_has_begun_is_sent_to_its_end(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "HALF_CLOSED_S", 0.1)
    async with serving(settings(), routes=ROUTES) as (_, listening, _):
        async with connected(listening, get("/stream", version)) as (reader, writer):
            writer.write_eof()
            assert (await rest(reader)).count(b"data: ") == 10
        async with connected(listening, get("/much", version)) as (reader, writer):
            writer.write_eof()
            await asyncio.sleep(0.4)  # the client reads slowly
            assert (await rest(reader)).count(b"x") == MUCH


@pytest.mark.parametrize("n_requests", [1, 2])
async def test_a_complete_answer_is_sent_although_the_connection_waits(
    n_requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, "HALF_CLOSED_S", 0.1)
    requests = get("/small-buffer") * n_requests
    async with (
        serving(settings(), routes=ROUTES) as (_, listening, _),
        connected(listening, requests, buffer=4096) as (reader, writer),
    ):
        writer.write_eof()
        await asyncio.sleep(0.4)
        assert (await rest(reader)).count(b"x") == 25_000 * n_requests


async def test_an_http_1_0_client_that_leaves_during_its_answer_is_noticed() -> None:
    left = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        stream = event_stream()
        await asyncio.sleep(0.2)  # the end of the client's side arrives before the head is sent
        await stream.prepare(request)
        try:
            while True:
                await stream.write(b"data: 1\n\n")
                await asyncio.sleep(0.05)
        finally:
            left.set()

    async with serving(settings(), routes=[("GET", "/endless", endless)]) as (_, listening, _):
        async with connected(listening, get("/endless", "1.0")) as (reader, writer):
            writer.write_eof()
            await asyncio.wait_for(reader.readuntil(b"data: 1"), PATIENCE)
            assert not left.is_set()
        await asyncio.wait_for(left.wait(), PATIENCE)


async def test_a_disconnect_with_tls_is_noticed(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=certificate.authority)
    given = settings(ssl_cert_file=str(certificate.chain), ssl_key_file=str(certificate.key))
    async with serving(given) as (_, listening, cancelled):
        _, writer = await asyncio.open_connection("127.0.0.1", listening.port, ssl=trust)
        writer.write(get("/hang"))
        await writer.drain()
        writer.close()
        await asyncio.wait_for(cancelled.wait(), PATIENCE)


async def test_a_tls_handshake_that_does_not_come_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HANDSHAKE_S", 0.3)
    certificate = make_certificate(tmp_path)
    given = settings(ssl_cert_file=str(certificate.chain), ssl_key_file=str(certificate.key))
    async with serving(given) as (_, listening, _), connected(listening, b"\x16\x03\x01") as (reader, _):
        assert await rest(reader) == b""


# -- time limits -----------------------------------------------------------------------------------------------------


async def test_a_connection_that_sends_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "HEAD_S", 0.1)
    async with serving(settings()) as (_, listening, _), connected(listening, b"") as (reader, _):
        assert await rest(reader) == b""


@pytest.mark.parametrize("before", [b"", get("/health")])
async def test_a_head_that_does_not_arrive_in_time_is_refused(before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "HEAD_S", 0.5)
    async with serving(settings()) as (_, listening, _), connected(listening, before) as (reader, writer):
        if before:
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(1)  # a connection between two requests is kept
        sending = asyncio.create_task(_drip(writer, b"GET /health HTTP/1.1\r\nX-Slow: " + b"a" * 1000))
        answer = await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE)
        sending.cancel()
        assert answer.startswith(b"HTTP/1.0 400"), "as every answer to a head that cannot be read"
        assert b"its head did not arrive within 0.5 s" in answer


async def _drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        for byte in data:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("framing", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_arrives_too_slowly_is_refused(framing: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "BODY_S", 0.4)
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n"
    async with serving(settings()) as (_, listening, _), connected(listening, head) as (reader, writer):
        sending = asyncio.create_task(_drip(writer, b"1\r\n \r\n" * 1000 if b"chunked" in framing else b" " * 1000))
        answer = await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE)
        sending.cancel()
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"bytes arrived within" in answer


async def test_a_slow_but_steady_body_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "BODY_S", 0.3)
    monkeypatch.setattr(client_connection, "BODY_RATE", 10)
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 302\r\n\r\n"
    async with serving(settings()) as (_, listening, _), connected(listening, head) as (reader, writer):
        for _ in range(10):
            writer.write(b" " * 30)
            await asyncio.sleep(0.1)
        writer.write(b"{}")
        assert (await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE)).startswith(b"HTTP/1.1 200")


# -- open files ------------------------------------------------------------------------------------------------------


async def test_near_the_limit_the_oldest_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(settings()) as (_, listening, cancelled), contextlib.AsyncExitStack() as stack:
        busy = await stack.enter_async_context(connected(listening, get("/hang?stream=1")))
        await busy[0].readuntil(b"data: 1")
        late_body = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        await stack.enter_async_context(connected(listening, late_body))
        idle = [await stack.enter_async_context(connected(listening, b"")) for _ in range(3)]
        for reader, writer in idle:
            writer.write(get("/health"))
            await reader.readuntil(b"}")
            await asyncio.sleep(0.01)  # the loop's time has a resolution of 1 ms
        monkeypatch.setattr(room, "current_limit", lambda: 1)
        for reader, _ in idle:
            async with connected(listening, get("/health")) as (new, _):
                assert (await asyncio.wait_for(new.readuntil(b"}"), PATIENCE)).startswith(b"HTTP/1.1 200")
            assert await rest(reader) == b"", "the oldest first"
        assert not cancelled.is_set(), "an answer is never cut off for a new connection"


async def test_near_the_limit_the_oldest_body_is_given_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    late_body = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    async with serving(settings()) as (_, listening, _), contextlib.AsyncExitStack() as stack:
        connections = []
        for _ in range(2):
            reader, writer = await stack.enter_async_context(connected(listening, get("/health")))
            await reader.readuntil(b"}")
            connections.append((reader, writer))
            await asyncio.sleep(0.05)  # the loop's time has a resolution of 1 ms
        for _, writer in reversed(connections):  # the older body is on the connection whose last answer is newer
            writer.write(late_body)
            await asyncio.sleep(0.05)
        monkeypatch.setattr(room, "current_limit", lambda: 1)
        async with connected(listening, get("/health")) as (new, _):
            assert (await asyncio.wait_for(new.readuntil(b"}"), PATIENCE)).startswith(b"HTTP/1.1 200")
        assert await rest(connections[1][0]) == b"", "the oldest first"


async def test_without_an_idle_connection_a_new_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room._Warnings, "next", 0.0)
    async with serving(settings()) as (_, listening, _), connected(listening, get("/hang?stream=1")) as (busy, _):
        await busy.readuntil(b"data: 1")
        monkeypatch.setattr(room, "current_limit", lambda: 5)
        async with connected(listening, b"") as (reader, _):
            answer = await rest(reader)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"too many connections" in answer
    assert caplog.text.count("nearly all 5 open files") == 1


class _Waiting:
    def __init__(self, since: float | None, closed: list[float | None]) -> None:
        self.idle_since = None if since is None else (since >= 600, since)
        self._since = since
        self._closed = closed

    def give_up(self) -> None:
        self._closed.append(self._since)


def test_many_idle_connections_are_closed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "current_limit", lambda: 1024)
    closed: list[float | None] = []
    waiting = [_Waiting(600.0, closed)]
    waiting += [_Waiting(float(n) if n % 2 else None, closed) for n in range(1, 641)]
    assert room.has_room(767, lambda: waiting)
    assert closed == []
    assert room.has_room(768, lambda: waiting)
    assert closed == [float(n) for n in range(1, 40, 2)]
    assert room.has_room(900, list)
    assert not room.has_room(1010, list)


# -- without a valid key ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/echo", "/nowhere"])
@pytest.mark.parametrize(
    "framing", ["Content-Length: 1000000000", "Transfer-Encoding: chunked\r\nContent-Encoding: gzip"]
)
async def test_a_request_without_a_valid_key_is_answered_before_its_body_is_read(path: str, framing: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n{framing}\r\n\r\n".encode()
    async with serving(settings(api_key=("k",))) as (_, listening, _), connected(listening, head) as (reader, _):
        answer = await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE)
        assert answer.startswith(b"HTTP/1.1 401")
