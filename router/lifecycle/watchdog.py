"""Which workers are stuck: from the signs of life that they give, and from those that do not come.

`supervisor` hands each sign to `Watchdog.record` and ends what is stuck. Whether a worker is, the pure `Liveness`
decides. A long batch is no reason: it uses the processor; nor is a load, or having no work: such a worker still says
so. Other programs are known only by what they answer. Who never gave a sign is not watched.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
from llama_corral.common.base.worker_reports import HEARTBEAT_S, SignOfLife

log = logging.getLogger("corral.router")

COMPUTING = 0.2
"""Of one core: who uses more than that computes."""
COMPUTING_FACTOR = 6
"""How much longer one may take who computes: a batch on a slow machine ends some time, a loop never does."""
CONFIRM_S = 3.0
"""The second look at a suspect comes so much later, since it may be the router that was held up."""

_IDLE = SignOfLife()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Liveness:
    """On the watchdog's clock, when a worker last …"""

    heard_at: float
    """… gave a sign of life,"""
    progressed_at: float
    """… got on with its requests, or had none,"""
    computed_at: float
    """… did so, or used the processor."""
    last_sign: SignOfLife = _IDLE

    def updated(self, sign: SignOfLife, now: float, *, has_requests: bool = False) -> Liveness:
        """`has_requests`: it may be busy with, though it does not say so. Counts as computing."""
        has_moved = not sign.busy or not self.last_sign.busy or sign.steps != self.last_sign.steps
        computes = has_requests or sign.cpu - self.last_sign.cpu >= COMPUTING * (now - self.heard_at)
        return Liveness(
            now,
            now if has_moved else self.progressed_at,
            now if has_moved or computes else self.computed_at,
            last_sign=sign,
        )

    def stuck_at(self, timeout: float) -> float:
        """When it is stuck, if nothing comes until then."""
        return min(self.heard_at + timeout, self.computed_at + timeout, self.progressed_at + timeout * COMPUTING_FACTOR)

    def why_stuck(self, now: float, timeout: float) -> str:
        """Nothing if it is not."""
        if now - self.heard_at >= timeout:
            return f"its process gave no sign of life for {now - self.heard_at:.0f} s"
        what = self.last_sign.complaint or "its requests did not get on"
        if now - self.computed_at >= timeout:
            return f"{what} for {now - self.progressed_at:.0f} s"
        if now - self.progressed_at >= timeout * COMPUTING_FACTOR:
            return f"{what} for {now - self.progressed_at:.0f} s, though it computes"
        return ""


@dataclass(slots=True)
class _Watched(Generic[T]):
    liveness: Liveness
    suspected: float | None = None


class Watchdog(Generic[T]):
    """Watches whatever signs are noted for; one timer for all, set to the earliest that may be stuck."""

    def __init__(self, timeout: float, clock: Callable[[], float], end: Callable[[T, str], None]) -> None:
        """`timeout`: seconds; 0: nobody is watched. `end` is called once, with the reason."""
        self._timeout = timeout
        self._clock = clock
        self._on_stuck = end
        self._watched: dict[T, _Watched[T]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def record(self, worker: T, payload: object, *, has_requests: bool = False, quiet_for: float = math.inf) -> None:
        """Of another program the router knows more: whether it has requests, and when it last said a byte to one."""
        if not self._timeout:
            return
        try:
            sign = msgspec.convert(payload, SignOfLife)
        except msgspec.ValidationError as error:
            log.warning("a worker's sign of life cannot be read: %s", error)
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
    """What people asked for, but never so little that the next sign could not have come."""
    return max(seconds, 3 * HEARTBEAT_S) if seconds else 0.0
