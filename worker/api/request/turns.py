"""Runs work that needs the interpreter all the time, such as templates and schemas, on few threads.

More threads would delay all others. Most work takes milliseconds, so it does not wait for the work of requests that
takes long: that is stopped early, and done from the beginning on another thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from ...grammar.work import TakesLong

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_SHORT = ThreadPoolExecutor(2, "renderer")
_LONG = ThreadPoolExecutor(1, "slow-renderer")


class Work(Protocol[T_co]):
    def __call__(self, *, soon: bool, given_up: Callable[[], bool]) -> T_co:
        """Return the result. Raises TakesLong if it is wanted `soon` and takes more than 0.1 s.

        `given_up` returns True once the client has disconnected: then the work is to stop with any error.
        """


async def in_turn(work: Work[T]) -> T:
    """Return the result of the work, after that of requests that came before."""
    loop, given_up = asyncio.get_running_loop(), threading.Event()
    try:
        try:
            return await loop.run_in_executor(_SHORT, lambda: work(soon=True, given_up=given_up.is_set))
        except TakesLong:
            return await loop.run_in_executor(_LONG, lambda: work(soon=False, given_up=given_up.is_set))
    finally:
        given_up.set()  # the client may have disconnected
