"""Keeps descriptors free for new connections: near the limit of open files, idle connections are closed.

Called by `client_connection` for each new connection. The kernel gives a new connection the lowest free descriptor, so
its number shows how many are in use, by connections and by everything else.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from ..base.open_files import current_limit

log = logging.getLogger("corral.http")

RESERVED, RESERVED_SHARE = 1024, 4
"""Descriptors kept free for workers, files and new connections: at most so many, and at most this part of the limit.

The event loop accepts all new connections before this module sees the first of them, and closes those for which it has
no descriptor.
"""
LAST = 16
"""With fewer free descriptors than these, a new connection is refused if no other one can be closed."""
CLOSED_SHARE = 16
"""This part of the idle connections is closed at once, so that looking for the oldest ones costs little."""
WARN_EVERY_S = 60.0


class Closable(Protocol):
    @property
    def idle_since(self) -> tuple[bool, float] | None:
        """If the client has to send something: whether that is the rest of a body, and since when; otherwise None."""

    def give_up(self) -> None: ...


class _Warnings:
    next = 0.0


def has_room(descriptor: int, connections: Callable[[], Iterable[Closable]]) -> bool:
    """Return False if a new connection must be refused. Near the limit, close the oldest idle connections, of
    which those in the middle of a request come last.

    `descriptor`: of the new connection. `connections`: returns all others.
    """
    limit = current_limit()
    if limit is None or descriptor < limit - min(RESERVED, limit // RESERVED_SHARE):
        return True
    waiting = [(since, id(one), one) for one in connections() if (since := one.idle_since) is not None]
    oldest = heapq.nsmallest(max(1, len(waiting) // CLOSED_SHARE), waiting)
    for _, _, connection in oldest:
        connection.give_up()
    _warn(limit, len(oldest))
    return bool(oldest) or descriptor < limit - LAST


def _warn(limit: int, n_closed: int) -> None:
    now = time.monotonic()
    if now >= _Warnings.next:
        _Warnings.next = now + WARN_EVERY_S
        log.warning(
            "nearly all %d open files (ulimit -n) are in use: %d idle connections are closed, and more if needed",
            limit,
            n_closed,
        )
