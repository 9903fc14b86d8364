"""Test the HTTP client for workers with servers that answer, delay, close and send invalid bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_corral.router.proxy import connection
from llama_corral.router.proxy.connection import (
    HIGH_WATER,
    ConnectionLost,
    ResponseTruncated,
    Unreachable,
    WorkerResponse,
)
from llama_corral.router.proxy.pool import ConnectionPool

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A server on a unix socket that passes each connection to `script` and records the requests."""

    def __init__(self, path: Path) -> None:
        self.endpoint = str(path)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.hangups = 0
        self.hung_up = asyncio.Event()
        self.asked = asyncio.Event()

    async def read(self, reader: asyncio.StreamReader) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hangups += 1
            self.hung_up.set()
            return False
        line, *fields = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((line, headers, body))
        self.asked.set()
        return True


@asynccontextmanager
async def serving(path: Path, script: Callable[[Server], Script], timeout: float | None = 5.0) -> AsyncIterator[Any]:
    server = Server(path)
    handle = script(server)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await handle(reader, writer)
        except ConnectionError:
            server.hung_up.set()
        finally:
            writer.close()

    listener = await asyncio.start_unix_server(connected, server.endpoint)
    pool = ConnectionPool(timeout=timeout)
    try:
        yield server, pool
    finally:
        pool.close()
        listener.close()
        await asyncio.sleep(0)


def answering(*pieces: bytes, close: bool = False) -> Callable[[Server], Script]:
    """Answer every request with the same bytes, one write per piece."""

    def make(server: Server) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await server.read(reader):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)
                if close:
                    return

        return script

    return make


async def post(pool: ConnectionPool, server: Server, body: bytes = b"{}") -> WorkerResponse:
    return await pool.send(server.endpoint, "POST", "/x?a=1", [(b"X-One", b"1"), (b"X-One", b"2")], body)


async def whole(reply: WorkerResponse) -> bytes:
    chunks = []
    while chunk := await reply.read():
        chunks.append(chunk)
    reply.close()
    return b"".join(chunks)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Two: a\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_small_response_is_complete_with_its_head(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", answering(OK)) as (server, pool):
        reply = await post(pool, server, b"abc")
        assert (reply.status, reply.reason, reply.complete) == (200, "OK", True)
        assert (b"X-Two", b"a") in reply.headers
        assert await whole(reply) == b"hi"
        line, headers, body = server.requests[0]
        assert (line, body) == ("POST /x?a=1 HTTP/1.1", b"abc")
        assert headers["content-length"] == "3"
        assert headers["host"] == "localhost"


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="Linux's")
async def test_a_head_without_its_body_is_acknowledged_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a program uses Nagle's algorithm; our system would delay the acknowledgement of the head by 40 ms."""
    told: list[socket.socket] = []

    def acknowledge(tcp: socket.socket) -> None:
        told.append(tcp)
        real(tcp)

    real = connection.quick_ack
    monkeypatch.setattr(connection, "quick_ack", acknowledge)

    head_came, ended = asyncio.Event(), asyncio.Event()
    pieces: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1000):
                pieces.append(piece)
                writer.write(OK.removesuffix(b"hi"))
                await head_came.wait()
                head_came.clear()
                writer.write(b"hi")
        writer.close()
        ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    pool = ConnectionPool(timeout=5)
    for n in range(1, 4):
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        reply = await pool.send(endpoint, "POST", "/", [], b"abc")
        assert len(told) == n
        head_came.set()
        assert await whole(reply) == b"hi"
        assert len(set(map(id, told))) == 1, "the connection is kept"
        assert told[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert [piece[-7:] for piece in pieces] == [b"\r\n\r\nabc"] * 3, "a request is one segment"
    pool.close()
    await ended.wait()
    server.close()


async def test_connections_are_reused_and_not_shared(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", answering(OK)) as (server, pool):
        for _ in range(3):
            assert await whole(await post(pool, server)) == b"hi"
        assert server.connections == 1
        replies = await asyncio.gather(*(post(pool, server) for _ in range(5)))
        assert server.connections == 5
        for reply in replies:
            assert await whole(reply) == b"hi"
        assert len(server.requests) == 8


@pytest.mark.parametrize(
    "pieces",
    [
        [CHUNKED, b"5\r\nhello\r\n", b"1\r\n!\r\n0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 6\r\n\r\nhel", b"lo!"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!"],
    ],
    ids=["chunked", "split", "after 100 Continue"],
)
async def test_chunks_of_a_response_are_returned_as_they_arrive(tmp_path: Path, pieces: list[bytes]) -> None:
    async with serving(tmp_path / "s", answering(*pieces)) as (server, pool):
        for _ in range(2):
            assert await whole(await post(pool, server)) == b"hello!"
        assert server.connections == 1


async def test_first_chunk_does_not_wait_for_the_second(tmp_path: Path) -> None:
    def make(server: Server) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            writer.write(CHUNKED + b"3\r\none\r\n")
            await go_on.wait()
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

        return script

    go_on = asyncio.Event()

    async with serving(tmp_path / "s", make) as (server, pool):
        reply = await post(pool, server)
        assert not reply.complete
        assert await reply.read() == b"one"
        go_on.set()
        assert await whole(reply) == b"two"


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"])
async def test_responses_without_a_body(tmp_path: Path, head: bytes) -> None:
    async with serving(tmp_path / "s", answering(head)) as (server, pool):
        for _ in range(2):
            reply = await post(pool, server)
            assert reply.complete
            assert await whole(reply) == b""
        assert server.connections == 1


async def test_response_to_head_has_no_body_despite_its_content_length(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", answering(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")) as (
        server,
        pool,
    ):
        reply = await pool.send(server.endpoint, "HEAD", "/", [], b"")
        assert reply.complete
        assert await whole(reply) == b""


async def test_body_that_ends_with_the_connection(tmp_path: Path) -> None:
    script = answering(b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it", close=True)
    async with serving(tmp_path / "s", script) as (server, pool):
        for _ in range(2):
            assert await whole(await post(pool, server)) == b"all of it"
        assert server.connections == 2


async def test_connection_close_is_respected(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
    async with serving(tmp_path / "s", answering(answer)) as (server, pool):
        for _ in range(2):
            assert await whole(await post(pool, server)) == b"hi"
        assert server.connections == 2


async def test_a_request_on_a_dead_reused_connection_is_retried_once(tmp_path: Path) -> None:
    """The server answers, then closes while the second request is being sent."""

    def make(server: Server) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            if server.connections == 1:
                writer.write(OK)
                await server.read(reader)
                return  # closes without a byte
            writer.write(OK)

        return script

    async with serving(tmp_path / "s", make) as (server, pool):
        assert await whole(await post(pool, server)) == b"hi"
        assert await whole(await post(pool, server, b"again")) == b"hi"
        assert server.connections == 2
        assert [body for _, _, body in server.requests] == [b"{}", b"again", b"again"]


async def test_a_request_on_a_new_connection_is_not_retried(tmp_path: Path) -> None:
    def make(server: Server) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)

        return script

    async with serving(tmp_path / "s", make) as (server, pool):
        with pytest.raises(ConnectionLost):
            await post(pool, server)
        assert server.connections == 1


@pytest.mark.parametrize(
    "pieces",
    [[CHUNKED, b"5\r\nhello\r\n"], [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhello"]],
    ids=["chunked", "length"],
)
async def test_a_truncated_response_raises_after_the_received_bytes(tmp_path: Path, pieces: list[bytes]) -> None:
    async with serving(tmp_path / "s", answering(*pieces, close=True)) as (server, pool):
        reply = await post(pool, server)
        assert await reply.read() == b"hello"
        with pytest.raises(ResponseTruncated):
            await reply.read()
        reply.close()


@pytest.mark.parametrize("nonsense", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])
async def test_invalid_http_is_an_error(tmp_path: Path, nonsense: bytes) -> None:
    async with serving(tmp_path / "s", answering(nonsense)) as (server, pool):
        with pytest.raises(ConnectionLost, match="not valid HTTP"):
            await post(pool, server)


async def test_no_listener_is_unreachable(tmp_path: Path) -> None:
    pool = ConnectionPool(timeout=1)
    with pytest.raises(Unreachable):
        await pool.send(str(tmp_path / "none"), "GET", "/", [], b"")
    with pytest.raises(Unreachable):
        await pool.send("127.0.0.1:1", "GET", "/", [], b"")


async def test_a_silent_exchange_times_out(tmp_path: Path) -> None:
    def make(server: Server) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            if server.requests[-1][2] == b"begin":
                writer.write(CHUNKED + b"3\r\none\r\n")
            await server.read(reader)

        return script

    async with serving(tmp_path / "s", make, timeout=0.1) as (server, pool):
        with pytest.raises(ConnectionLost, match=r"0\.1 s"):
            await post(pool, server)
        reply = await post(pool, server, b"begin")
        assert await reply.read() == b"one"
        with pytest.raises(ResponseTruncated):
            await reply.read()
        reply.close()


async def test_closing_an_incomplete_response_closes_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", answering(CHUNKED + b"3\r\none\r\n")) as (server, pool):
        reply = await post(pool, server)
        assert await reply.read() == b"one"
        reply.close()
        await asyncio.wait_for(server.hung_up.wait(), 5)
        assert server.hangups == 1


async def test_cancelling_before_the_response_closes_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", answering()) as (server, pool):
        request = asyncio.create_task(post(pool, server))
        await server.asked.wait()
        request.cancel()
        await asyncio.wait_for(server.hung_up.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await request


async def test_slow_reader_pauses_the_writer(tmp_path: Path) -> None:
    """No more of an endless response is read than the high-water mark and the sockets' buffers."""
    sent = 0
    block = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    def make(server: Server) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await server.read(reader)
            writer.write(CHUNKED)
            for _ in range(400):
                writer.write(block)
                await writer.drain()
                sent += 0x10000
            writer.write(b"0\r\n\r\n")
            await server.read(reader)

        return script

    async with serving(tmp_path / "s", make) as (server, pool):
        reply = await post(pool, server)
        before = -1
        while before != sent:  # until it stops growing
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 3 * 1024 * 1024
        assert len(await reply.read()) < HIGH_WATER + 1024 * 1024
        assert len(await whole(reply)) > 20 * 1024 * 1024
        assert await whole(await post(pool, server)) != b""


async def test_large_body_arrives_whole(tmp_path: Path) -> None:
    body = bytes(range(256)) * 40_000

    async with serving(tmp_path / "s", answering(OK)) as (server, pool):
        assert await whole(await post(pool, server, body)) == b"hi"
        assert server.requests[0][2] == body


async def test_idle_connection_that_the_server_closes_is_not_reused(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", answering(OK, close=True)) as (server, pool):
        assert await whole(await post(pool, server)) == b"hi"
        await asyncio.sleep(0.01)  # must work whether the close was noticed already or not
        assert await whole(await post(pool, server)) == b"hi"
        assert len(server.requests) == 2
