"""The threads that prepare what a request's samplers need, before the request reaches the engine thread.

Each kind of work has one thread: a lot of it would otherwise occupy all processors. Work that waits can be cancelled
by its future. The threads end with the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from llama_corral.common.base.daemon_threads import DaemonThreads

STACK_BYTES = 64 << 20
"""Stack of each thread: llguidance follows chains of rules recursively, about 4 KB for each."""

SMALL = 16 << 10
"""Grammars up to this number of characters do not wait for larger ones that are being compiled."""

T = TypeVar("T")

_threads: dict[str, DaemonThreads] = {}
_starting = threading.Lock()


def for_grammar(function: Callable[[], T], n_characters: int) -> Future[T]:
    """Run a function that reads a grammar of this length."""
    return _submit("small grammars" if n_characters <= SMALL else "large grammars", function)


def for_dry(function: Callable[[], T]) -> Future[T]:
    return _submit("dry", function)


def done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _submit(kind: str, function: Callable[[], T]) -> Future[T]:
    with _starting:
        threads = _threads.get(kind)
        if threads is None:
            threads = _threads[kind] = DaemonThreads(1, patience=0.0)
        before = threading.stack_size(STACK_BYTES)  # the thread starts with the first task
        try:
            return threads.submit(function)
        finally:
            threading.stack_size(before)
