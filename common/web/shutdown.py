"""Shutdown of a server: signals, and the time that running requests have to finish.

The mains of router and worker wait for `ShutdownRequest`; `application` tracks requests in `RunningRequests`. The
first signal lets requests finish, the second aborts them, the third ends the process immediately.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

from ..base.errors import SHUTTING_DOWN

log = logging.getLogger("corral.http")

FINAL_EVENT_S = 1.0
"""Seconds for aborted handlers to send an error to their clients."""
KILLED = 1  # exit code


class ShutdownRequest:
    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()
        self.reason = SHUTTING_DOWN
        """What the clients of refused and aborted requests are told."""

    def request(self, reason: str = "") -> None:
        if not self.requested.is_set():
            self.reason = reason or SHUTTING_DOWN
            self.requested.set()
        elif not self.forced.is_set():
            log.info("aborting the running requests; another signal ends the process immediately")
            self.forced.set()
        else:
            logging.shutdown()  # writes the lines that wait
            os._exit(KILLED)

    def on_signals(self) -> None:
        """Handle SIGINT and SIGTERM with `request` until the event loop ends."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self.request)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self.request))


class RunningRequests:
    """The requests that are being handled."""

    def __init__(self) -> None:
        self.is_closed = False
        """True if new requests must be refused."""
        self.refusal = SHUTTING_DOWN
        """The message of these refusals."""
        self.at_end: list[Callable[[], Awaitable[None]]] = []
        """Called when the shutdown begins: ends things that requests wait for, so that the shutdown need not wait."""
        self._tasks: set[asyncio.Task[object]] = set()
        self._none = asyncio.Event()

    def __len__(self) -> int:
        return len(self._tasks)

    @contextlib.contextmanager
    def track(self) -> Iterator[None]:
        """Count the current task as a running request inside the `with` block."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)
            if self.is_closed and not self._tasks:
                self._none.set()

    def close(self, refusal: str = SHUTTING_DOWN) -> None:
        self.is_closed, self.refusal = True, refusal
        if not self._tasks:
            self._none.set()

    async def wait_until_done(self, seconds: float, hurried: asyncio.Event) -> bool:
        """Wait until no request runs, `seconds` have passed or `hurried` is set. Return False if some still run."""
        waits = [asyncio.ensure_future(self._none.wait()), asyncio.ensure_future(hurried.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self._none.is_set()

    def cancel(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()


async def drain(running: RunningRequests, stop: ShutdownRequest, seconds: float, cut: Callable[[], object]) -> None:
    """Refuse new requests and wait `seconds` for running ones; then `cut` the rest, with an error to their clients."""
    running.close(stop.reason)
    for call in running.at_end:
        await call()
    if running:
        log.info("%d requests have %g s to finish; a second signal aborts them", len(running), seconds)
    if await running.wait_until_done(seconds, stop.forced):
        return
    log.warning("aborting %d requests", len(running))
    result = cut()
    if asyncio.iscoroutine(result):
        await result
    if not await running.wait_until_done(FINAL_EVENT_S, asyncio.Event()):
        running.cancel()
