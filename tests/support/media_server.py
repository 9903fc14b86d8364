"""A web server for the tests of fetching: serves files and simulates the faults of foreign servers.

`async with served(…)`: on the test's own loop, on loopback; counts the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@dataclass
class MediaServer:
    port: int = 0
    scheme: str = "http"
    asked: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    redirect_to: str = ""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        self.asked.append(path)
        self.headers.append(head)
        match path.split("?")[0]:
            case "/picture.png":
                _send(writer, 200, PICTURE)
            case "/empty":
                _send(writer, 200, b"")
            case "/announced-large":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
                await writer.drain()
                await asyncio.Event().wait()
            case "/endless":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                    await writer.drain()
            case "/slow-head":
                await asyncio.Event().wait()
            case "/endless-wait":
                self.arrived.set()
                await reader.read()
                self.left.set()
            case "/slow-body":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab")
                await writer.drain()
                await asyncio.Event().wait()
            case "/cut-off":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab")
            case "/compressed":
                _send(writer, 200, b"xx", "Content-Encoding: gzip")
            case "/loop":
                _send(writer, 302, b"", "Location: /loop")
            case "/redirect":
                _send(writer, 307, b"", f"Location: {self.redirect_to}")
            case "/nonsense":
                writer.write(b"220 smtp.example.org ESMTP\r\n")
            case _:
                _send(writer, 404, b"not here")
        await writer.drain()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def serve() -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.answer(reader, writer)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        def end(task: asyncio.Task[None]) -> None:
            self.connections.discard(task)
            writer.transport.abort()  # also if the task was cancelled before its first step

        task = asyncio.ensure_future(serve())
        self.connections.add(task)
        task.add_done_callback(end)


def _send(writer: asyncio.StreamWriter, status: int, body: bytes, *headers: str) -> None:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    writer.write("".join(line + "\r\n" for line in lines).encode() + b"\r\n" + body)


@asynccontextmanager
async def served(tls: ssl.SSLContext | None = None) -> AsyncIterator[MediaServer]:
    media = MediaServer(scheme="https" if tls else "http")
    server = await asyncio.start_server(media.take, "127.0.0.1", 0, ssl=tls)
    media.port = server.sockets[0].getsockname()[1]
    try:
        yield media
    finally:
        server.close()
        for _ in range(10):  # a connection just accepted gets its task, and an aborted one closes, iterations later
            for task in list(media.connections):
                task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*media.connections, return_exceptions=True)
