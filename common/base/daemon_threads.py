"""The threads of an event loop for calls that block, such as reading files.

A call may never return, for example on a network file system whose server is away. The standard library waits for such
a thread when the loop and the interpreter end; these threads end with the process instead.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger("corral.http")

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 64
"""More than usual, because threads that hang are not replaced."""
PATIENCE_S = 2.0
"""Seconds that the end of the program waits for calls that still run."""

_Call = tuple["Future[Any]", Callable[[], Any]]


def use_daemon_threads() -> None:
    """Let `asyncio.to_thread` in the running loop use such threads."""
    asyncio.get_running_loop().set_default_executor(DaemonThreads())


class DaemonThreads(ThreadPoolExecutor):
    """A thread pool that its loop accepts as default. Threads start when they are needed, and stay."""

    def __init__(self, max_threads: int = MAX_THREADS, *, patience: float = PATIENCE_S) -> None:
        """`patience`: seconds that `shutdown` waits."""
        super().__init__(1)  # its own threads are never started
        self._limit = max_threads
        self._patience = patience
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._own = threading.Lock()
        self._n_threads = 0
        self._n_unfinished = 0
        self._is_closed = False
        self._none_left = threading.Event()
        self._none_left.set()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        with self._own:
            if self._is_closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._n_unfinished += 1
            self._none_left.clear()
            if self._n_threads < min(self._n_unfinished, self._limit):
                threading.Thread(target=self._work, name=f"blocking-{self._n_threads}", daemon=True).start()
                self._n_threads += 1
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. `wait`: wait for those that were accepted, but not longer than the patience."""
        with self._own:
            is_first, self._is_closed = not self._is_closed, True
        if wait and is_first and not self._none_left.wait(self._patience):
            log.warning("not waiting any longer for %d calls that block", self._n_unfinished)
        for _ in range(self._n_threads if is_first else 0):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, work = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del call, future, work  # nothing is kept alive while it waits for the next call
            with self._own:
                self._n_unfinished -= 1
                if not self._n_unfinished:
                    self._none_left.set()
