"""How a server ends: signals, the requests that still run, and the time they get.

The mains of router and worker ask `ShutdownRequest` whether and how fast to end; `application.application` counts
requests in `RunningRequests`. The first signal lets them finish, the second cuts them, the third ends the process
where it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

log = logging.getLogger("corral.http")

FINAL_EVENT_S = 1.0
"""For handlers to tell their clients that they are cut."""
KILLED = 1  # exit code


class ShutdownRequest:
    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def request(self) -> None:
        if not self.requested.is_set():
            self.requested.set()
        elif not self.forced.is_set():
            log.info("cutting what still runs; another signal ends the process at once")
            self.forced.set()
        else:
            os._exit(KILLED)

    def on_signals(self) -> None:
        """SIGINT and SIGTERM, until the loop ends."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self.request)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self.request))


class RunningRequests:
    """The requests that are being answered."""

    def __init__(self) -> None:
        self.is_closed = False
        """New requests are to be refused."""
        self.at_end: list[Callable[[], Awaitable[None]]] = []
        """Called as soon as the end begins: for what requests may wait for, and the end may not."""
        self._tasks: set[asyncio.Task[object]] = set()
        self._none = asyncio.Event()

    def __len__(self) -> int:
        return len(self._tasks)

    @contextlib.contextmanager
    def track(self) -> Iterator[None]:
        """The current task answers a request inside the block."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)
            if self.is_closed and not self._tasks:
                self._none.set()

    def close(self) -> None:
        self.is_closed = True
        if not self._tasks:
            self._none.set()

    async def wait_until_done(self, seconds: float, hurried: asyncio.Event) -> bool:
        """Waits for the last one, but not longer, and not once it is urgent. False: some are left."""
        waits = [asyncio.ensure_future(self._none.wait()), asyncio.ensure_future(hurried.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self._none.is_set()

    def cancel(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()


async def drain(running: RunningRequests, stop: ShutdownRequest, seconds: float, cut: Callable[[], object]) -> None:
    """Refuses what comes, lets what runs finish within `seconds`, has the rest `cut` with a word to its client."""
    running.close()
    for call in running.at_end:
        await call()
    if running:
        log.info("%d requests have %g s to finish; a second signal cuts them", len(running), seconds)
    if await running.wait_until_done(seconds, stop.forced):
        return
    log.warning("cutting %d requests", len(running))
    result = cut()
    if asyncio.iscoroutine(result):
        await result
    if not await running.wait_until_done(FINAL_EVENT_S, asyncio.Event()):
        running.cancel()
