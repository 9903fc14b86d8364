"""A process that measures how long other clients wait: a stream of each neighbour model, and `/health`.

It is a process, because an attack that is sent from the same process would delay the measurement.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import aiohttp

HEALTH = "health"
PAUSE_S = 0.05
BUSY_S = 0.02
"""Pause after a refused request of a neighbour."""
FAILED_S = 60.0


@dataclass
class Waits:
    """The largest wait of one client in seconds, with the one that still lasts."""

    largest: float = 0.0
    since: float = 0.0
    failures: int = 0
    last_failure: str = ""

    def begin(self) -> None:
        self.since = time.monotonic()

    def arrived(self) -> None:
        now = time.monotonic()
        if self.since:
            self.largest = max(self.largest, now - self.since)
        self.since = now

    def rest(self) -> None:
        """Nothing is expected until the next `begin`."""
        self.since = 0.0

    def reset(self) -> None:
        self.largest, self.failures = 0.0, 0
        self.since = time.monotonic() if self.since else 0.0

    def read(self) -> float:
        return max(self.largest, time.monotonic() - self.since if self.since else 0.0)


@dataclass(frozen=True)
class Gaps:
    same: float
    """The largest wait in seconds of the stream of the attacked model, between two tokens or for the first one."""
    other: float
    health: float
    failures: int
    """Requests of the neighbours that failed."""
    last_failure: str = ""


class Probe:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start_measuring(self) -> None:
        self._ask("reset")

    def pause(self) -> None:
        """End the streams; only `/health` is asked for until the process ends."""
        self._ask("pause")

    def gaps(self) -> Gaps:
        return Gaps(*self._ask("read"))

    def _ask(self, what: str) -> tuple[float, float, float, int, str]:
        self._connection.send(what)
        answer: tuple[float, float, float, int, str] = self._connection.recv()
        return answer


@contextmanager
def probing(url: str, key: str, same: str, other: str) -> Iterator[Probe]:
    """Run the process; it has received tokens of both streams when the block begins."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(url, key, same, other, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(60):
            raise RuntimeError("the neighbours' streams do not begin")
        ours.recv()
        yield Probe(ours)
    finally:
        process.terminate()
        process.join(5)


def _main(url: str, key: str, same: str, other: str, connection: Connection) -> None:
    asyncio.run(_probe(url, key, same, other, connection))


async def _probe(url: str, key: str, same: str, other: str, connection: Connection) -> None:
    waits = {name: Waits() for name in (same, other, HEALTH)}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(FAILED_S)
    async with aiohttp.ClientSession(url, headers=headers, timeout=timeout) as session, asyncio.TaskGroup() as group:
        streams = [group.create_task(_stream(session, name, waits[name])) for name in {same, other}]
        group.create_task(_health(url, waits[HEALTH]))
        while not all(one.largest for one in waits.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        connection.send("ready")
        while True:
            asked = await asyncio.to_thread(connection.recv)
            if asked == "reset":
                for one in waits.values():
                    one.reset()
            elif asked == "pause":
                for stream in streams:
                    stream.cancel()
            failures = sum(one.failures for one in waits.values())
            last = next((one.last_failure for one in waits.values() if one.last_failure), "")
            connection.send((*(waits[name].read() for name in (same, other, HEALTH)), failures, last))


async def _stream(session: aiohttp.ClientSession, model: str, waits: Waits) -> None:
    """Read stream after stream. The wait for the first token of the next one counts too."""
    body = {"model": model, "prompt": "Once upon a time", "n_predict": 400, "ignore_eos": True, "stream": True}
    while True:
        waits.begin()
        try:
            async with session.post("/completion", json=body) as response:
                if response.status != 200:
                    raise aiohttp.ClientError(f"{response.status} {(await response.read())[:200]!r}")
                async for _ in response.content.iter_any():
                    waits.arrived()
        except (aiohttp.ClientError, TimeoutError) as error:
            waits.arrived()
            waits.failures += 1
            waits.last_failure = f"{model}: {type(error).__name__}: {error}"
            await asyncio.sleep(BUSY_S)


async def _health(url: str, waits: Waits) -> None:
    """Ask with a new connection each time."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(FAILED_S)) as session:
        while True:
            waits.begin()
            try:
                async with session.get("/health") as response:
                    await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                waits.failures += 1
                waits.last_failure = f"health: {type(error).__name__}: {error}"
            waits.arrived()
            waits.rest()
            await asyncio.sleep(PAUSE_S)
