"""Detect workers that hang, from their heartbeats (signs of life) and from missing ones.

`executor` passes each heartbeat to `Watchdog.record` and kills workers that hang. The pure class `Liveness` decides.
A worker with a long batch does not hang, because it uses the processor. A worker that loads or has no work still sends
heartbeats. Other programs are judged by their responses only. A worker that never sent a heartbeat is not watched.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
from llama_corral.common.base.worker_reports import HEARTBEAT_S, SignOfLife
from msgspec import Struct

log = logging.getLogger("corral.router")

COMPUTING = 0.2
"""Share of one core; a worker that uses at least this much computes."""
COMPUTING_FACTOR = 6
"""Factor of the timeout for a worker that computes: a batch on a slow machine ends some time, a loop never does."""
CONFIRM_S = 3.0
"""Delay of the second check of a suspected worker, since the router itself may have been blocked."""

_IDLE = SignOfLife()

T = TypeVar("T")


class Liveness(Struct, frozen=True):
    """When a worker last showed progress, as times on the watchdog's clock."""

    heard_at: float
    """Last heartbeat."""
    progressed_at: float
    """Last time when its requests made progress or it had none."""
    computed_at: float
    """The same, or when it last used the processor."""
    last_sign: SignOfLife = _IDLE

    def updated(self, sign: SignOfLife, now: float, *, has_requests: bool = False) -> Liveness:
        """Return the state after a heartbeat.

        `has_requests`: it has requests that its heartbeats do not report; counts as computing.
        """
        has_moved = not sign.busy or not self.last_sign.busy or sign.steps != self.last_sign.steps
        computes = has_requests or sign.cpu - self.last_sign.cpu >= COMPUTING * (now - self.heard_at)
        return Liveness(
            now,
            now if has_moved else self.progressed_at,
            now if has_moved or computes else self.computed_at,
            last_sign=sign,
        )

    def stuck_at(self, timeout: float) -> float:
        """Return the time from which it counts as hanging if no heartbeat arrives before."""
        return min(self.heard_at + timeout, self.computed_at + timeout, self.progressed_at + timeout * COMPUTING_FACTOR)

    def why_stuck(self, now: float, timeout: float) -> str:
        """Return the reason why it hangs; an empty string if it does not."""
        if now - self.heard_at >= timeout:
            return f"its process sent no heartbeat for {now - self.heard_at:.0f} s"
        what = self.last_sign.complaint or "its requests made no progress"
        if now - self.computed_at >= timeout:
            return f"{what} for {now - self.progressed_at:.0f} s"
        if now - self.progressed_at >= timeout * COMPUTING_FACTOR:
            return f"{what} for {now - self.progressed_at:.0f} s, though it computes"
        return ""


class _Watched(Struct, Generic[T]):
    liveness: Liveness
    suspected: float | None = None


class Watchdog(Generic[T]):
    """Watches every worker that sent a heartbeat; one timer, set to the earliest time at which one may hang."""

    def __init__(self, timeout: float, clock: Callable[[], float], end: Callable[[T, str], None]) -> None:
        """`timeout`: seconds; 0: no worker is watched. `end` is called once per hanging worker, with the reason."""
        self._timeout = timeout
        self._clock = clock
        self._on_stuck = end
        self._watched: dict[T, _Watched[T]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def record(self, worker: T, payload: object, *, has_requests: bool = False, quiet_for: float = math.inf) -> None:
        """Record a heartbeat.

        For another program the router adds `has_requests`, and `quiet_for`: seconds since the program's last byte.
        """
        if not self._timeout:
            return
        try:
            sign = msgspec.convert(payload, SignOfLife)
        except msgspec.ValidationError as error:
            log.warning("cannot read a worker's heartbeat: %s", error)
            return
        now = self._clock()
        watched = self._watched.get(worker)
        if watched is None:
            self._watched[worker] = _Watched(Liveness(now, now, now, sign))
        else:
            if quiet_for < now - watched.liveness.heard_at:
                sign = msgspec.structs.replace(sign, busy=False)
            watched.liveness = watched.liveness.updated(sign, now, has_requests=has_requests)
        if self._timer is None:
            self._arm_timer(now)

    def forget(self, worker: T) -> None:
        self._watched.pop(worker, None)
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self) -> None:
        now = self._clock()
        for worker, watched in tuple(self._watched.items()):
            why = watched.liveness.why_stuck(now, self._timeout)
            if not why:
                watched.suspected = None
            elif watched.suspected is None:
                watched.suspected = now
            elif now - watched.suspected >= self._confirm:
                self.forget(worker)
                self._on_stuck(worker, why)
        self._arm_timer(now)

    @property
    def _confirm(self) -> float:
        return min(CONFIRM_S, self._timeout)

    def _arm_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = min((self._next_check(watched) for watched in self._watched.values()), default=None)
        if when is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, when - now), self.check)

    def _next_check(self, watched: _Watched[T]) -> float:
        if watched.suspected is not None:
            return watched.suspected + self._confirm
        return watched.liveness.stuck_at(self._timeout)


def effective_timeout(seconds: float) -> float:
    """Return the configured timeout (0: off), but at least the time of 3 heartbeats."""
    return max(seconds, 3 * HEARTBEAT_S) if seconds else 0.0
