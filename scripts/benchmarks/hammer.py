"""Sends many small requests over keep-alive connections, in a separate process so that nothing else slows it down.

`python -m benchmarks.hammer '{"address": …, "connections": 64, "seconds": 3, "request": …}'` prints one JSON object.
Each connection has one open request at a time. `null_server` answers immediately; the rate against it is the client's
limit.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import cast

import httptools
import uvloop

from .client import Address, encode
from .summary import percentile

WARM_S = 0.2  # connections open and caches fill before counting starts
NULL_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n" + b'{"tokens":[1,2,3,45]}'
)
ENOUGH_CORES = 4  # with at least this many, the client is pinned to one core


@dataclass(frozen=True)
class Hits:
    """The result of a run: requests per second, latencies in microseconds, and the number of answers other than 200."""

    per_second: float
    p50_us: float
    p99_us: float
    errors: int


class Hammerer(asyncio.Protocol):
    """One keep-alive connection: sends a request when the last one was answered. A closed connection is reopened."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not a subclass
        self.parser = httptools.HttpResponseParser(self)
        self.run.live.add(self.transport)
        self._send()

    def _send(self) -> None:
        self.started = time.perf_counter()
        self.transport.write(self.run.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.run.took.append(time.perf_counter() - self.started)
        if self.parser.get_status_code() != 200:
            self.run.errors += 1
        if self.run.active:
            if not self.parser.should_keep_alive():
                self.transport.close()
                return
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self.run.live.discard(self.transport)
        if self.run.active:
            self.run.reopen()
        elif not self.run.live:
            self.run.emptied.set()


class Run:
    """The state that all connections of a run share."""

    def __init__(self, address: Address, request: bytes) -> None:
        self.address = address
        self.request = request
        self.took: list[float] = []
        self.errors = 0
        self.active = True
        self.live: set[asyncio.Transport] = set()
        self.emptied = asyncio.Event()
        self.opening: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self.address, str):
            await loop.create_unix_connection(lambda: Hammerer(self), self.address)
        else:
            await loop.create_connection(lambda: Hammerer(self), *self.address)

    def reopen(self) -> None:
        task = asyncio.get_running_loop().create_task(self.open())
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def end(self) -> None:
        self.active = False
        for transport in self.live:
            transport.abort()
        if self.live:
            await self.emptied.wait()


async def hammer_here(address: Address, connections: int, seconds: float, request: bytes) -> Hits:
    run = Run(address, request)
    await asyncio.gather(*(run.open() for _ in range(connections)))
    await asyncio.sleep(WARM_S)
    run.took.clear()
    run.errors = 0
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - started
    count = len(run.took)
    await run.end()
    took = sorted(run.took) or [float("nan")]
    return Hits(count / elapsed, percentile(took, 50) * 1e6, percentile(took, 99) * 1e6, run.errors)


async def hammer(address: Address, connections: int, seconds: float, path: str, payload: object) -> Hits:
    """Run `hammer_here` in a separate process. Raises RuntimeError if that fails."""
    request = encode("POST", path, payload, keep_alive=True).decode()
    order = {"address": address, "connections": connections, "seconds": seconds, "request": request}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, json.dumps(order), stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise RuntimeError(f"the load client exited with {process.returncode}")
    return Hits(**json.loads(out))


@asynccontextmanager
async def null_server() -> AsyncIterator[Address]:
    """Run a server that answers every request immediately, without reading it."""

    class Null(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not a subclass

        def data_received(self, data: bytes) -> None:
            self.transport.write(NULL_ANSWER)

    server = await asyncio.get_running_loop().create_server(Null, "127.0.0.1", 0)
    async with server:
        yield ("127.0.0.1", server.sockets[0].getsockname()[1])


def main() -> None:
    order = json.loads(sys.argv[1])
    where = order["address"]
    address: Address = where if isinstance(where, str) else (where[0], where[1])
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if len(cores) >= ENOUGH_CORES:
        os.sched_setaffinity(0, cores[-1:])
    work = hammer_here(address, order["connections"], order["seconds"], order["request"].encode())
    print(json.dumps(asdict(uvloop.run(work))))


if __name__ == "__main__":
    main()
