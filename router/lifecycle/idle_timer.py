"""Unload models whose `ttl` is over: one timer for all models, set to the earliest.

Owned by `dispatcher`, which calls `check` after each change that affects when a model expires.
`placement` decides which models have expired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..placement import placement
from ..placement.snapshot import PlacementSnapshot

MAX_DELAY_S = 86400.0
"""Longest timer, since a `ttl` may be too long for some clocks: then the timer checks once a day."""


class IdleTimer:
    def __init__(
        self,
        clock: Callable[[], float],
        snapshot: Callable[[], PlacementSnapshot],
        evict: Callable[[placement.Eviction], None],
    ) -> None:
        self._clock = clock
        self._snapshot = snapshot
        self._evict = evict
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def check(self) -> None:
        """Unload the expired models and set the timer for the next one."""
        self._disarm()
        if self._is_closed:
            return
        snapshot = self._snapshot()
        for eviction in placement.expired(snapshot):
            self._evict(eviction)
        when = placement.next_expiry(snapshot)
        if when is not None:
            delay = min(max(0.0, when - self._clock()), MAX_DELAY_S)
            self._timer = asyncio.get_running_loop().call_later(delay, self.check)

    def close(self) -> None:
        self._is_closed = True
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
