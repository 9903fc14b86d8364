"""Which workers are stuck: from the signs of life that they give, and from those that do not come.

`supervisor` hands each sign to `Watchdog.note` and ends what is stuck. Whether a worker is, the pure `Pulse` decides. A
long batch is no reason: it uses the processor; nor is a load, or having no work: such a worker still says so. Other
programs are known only by what they answer. Who never gave a sign is not watched.
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
class Pulse:
    """On the watchdog's clock, when a worker last …"""

    heard: float
    """… gave a sign of life,"""
    moved: float
    """… got on with its requests, or had none,"""
    computed: float
    """… did so, or used the processor."""
    last: SignOfLife = _IDLE

    def after(self, sign: SignOfLife, now: float, *, has_requests: bool = False) -> Pulse:
        """`has_requests`: it may be busy with, though it does not say so. Counts as computing."""
        has_moved = not sign.busy or not self.last.busy or sign.steps != self.last.steps
        computes = has_requests or sign.cpu - self.last.cpu >= COMPUTING * (now - self.heard)
        return Pulse(now, now if has_moved else self.moved, now if has_moved or computes else self.computed, last=sign)

    def due(self, timeout: float) -> float:
        """When it is stuck, if nothing comes until then."""
        return min(self.heard + timeout, self.computed + timeout, self.moved + timeout * COMPUTING_FACTOR)

    def why_stuck(self, now: float, timeout: float) -> str:
        """Nothing if it is not."""
        if now - self.heard >= timeout:
            return f"its process gave no sign of life for {now - self.heard:.0f} s"
        what = self.last.complaint or "its requests did not get on"
        if now - self.computed >= timeout:
            return f"{what} for {now - self.moved:.0f} s"
        if now - self.moved >= timeout * COMPUTING_FACTOR:
            return f"{what} for {now - self.moved:.0f} s, though it computes"
        return ""


@dataclass(slots=True)
class _Watched(Generic[T]):
    pulse: Pulse
    suspected: float | None = None


class Watchdog(Generic[T]):
    """Watches whatever signs are noted for; one timer for all, set to the earliest that may be stuck."""

    def __init__(self, timeout: float, clock: Callable[[], float], end: Callable[[T, str], None]) -> None:
        """`timeout`: seconds; 0: nobody is watched. `end` is called once, with the reason."""
        self._timeout = timeout
        self._clock = clock
        self._end = end
        self._watched: dict[T, _Watched[T]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, who: T, payload: object, *, has_requests: bool = False, quiet_for: float = math.inf) -> None:
        """Of another program the router knows more: whether it has requests, and when it last said a byte to one."""
        if not self._timeout:
            return
        try:
            sign = msgspec.convert(payload, SignOfLife)
        except msgspec.ValidationError as error:
            log.warning("a worker's sign of life cannot be read: %s", error)
            return
        now = self._clock()
        watched = self._watched.get(who)
        if watched is None:
            self._watched[who] = _Watched(Pulse(now, now, now, sign))
        else:
            if quiet_for < now - watched.pulse.heard:
                sign = msgspec.structs.replace(sign, busy=False)
            watched.pulse = watched.pulse.after(sign, now, has_requests=has_requests)
        if self._timer is None:
            self._arm(now)

    def forget(self, who: T) -> None:
        self._watched.pop(who, None)
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self) -> None:
        now = self._clock()
        for who, watched in tuple(self._watched.items()):
            why = watched.pulse.why_stuck(now, self._timeout)
            if not why:
                watched.suspected = None
            elif watched.suspected is None:
                watched.suspected = now
            elif now - watched.suspected >= self._confirm:
                self.forget(who)
                self._end(who, why)
        self._arm(now)

    @property
    def _confirm(self) -> float:
        return min(CONFIRM_S, self._timeout)

    def _arm(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = min((self._next_look(watched) for watched in self._watched.values()), default=None)
        if when is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, when - now), self.check)

    def _next_look(self, watched: _Watched[T]) -> float:
        if watched.suspected is not None:
            return watched.suspected + self._confirm
        return watched.pulse.due(self._timeout)


def least_timeout(seconds: float) -> float:
    """What people asked for, but never so little that the next sign could not have come."""
    return max(seconds, 3 * HEARTBEAT_S) if seconds else 0.0
