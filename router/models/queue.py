"""The requests that wait for each model, and the queue of models that wait for a load.

Plain bookkeeping owned by `lifecycle`; `placement` decides on its `entries`. A model has one entry in the queue, no
matter how many requests wait for it. The entry is removed with its last queued waiter. A request that arrives while
the model already loads waits without an entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llama_corral.common.base.errors import ApiError

from ..placement.snapshot import QueueEntry, Retention

if TYPE_CHECKING:
    from llama_corral.presets.sources import Preset

MakeError = Callable[[], ApiError]
"""Makes a new exception for each waiter."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to send one request to a worker; the worker is not evicted before the lease is released."""

    model: str
    endpoint: str
    """Path of the worker's unix socket, or `host:port`."""
    instance: object
    """The `Instance` of the model's worker; for `lifecycle` only."""
    touch: bool = True
    """True if the request counts as use of the model."""
    preset: Preset | None = None
    """The requested preset: the model's or a variant's."""


@dataclass(slots=True, eq=False)
class Waiter:
    grant: asyncio.Future[Lease]
    touch: bool
    retention: Retention | None
    """The retention that the request sets for the model."""
    since: float
    is_queued: bool
    saw_start: bool
    """True if it waits for an existing instance. If that instance ends before it is ready, the waiter is refused."""
    may_load: bool = True
    """True if it waits for the next instance when the one that it waits for ends."""


class RequestQueue:
    def __init__(self) -> None:
        self._entries: dict[str, QueueEntry] = {}  # in order of arrival
        self._waiters: dict[str, list[Waiter]] = {}

    @property
    def entries(self) -> tuple[QueueEntry, ...]:
        return tuple(self._entries.values())

    @property
    def has_queue(self) -> bool:
        return bool(self._entries)

    def count(self, model: str) -> int:
        return len(self._waiters.get(model, ()))

    def count_all(self) -> int:
        return sum(len(waiters) for waiters in self._waiters.values())

    def add(self, model: str, waiter: Waiter) -> None:
        self._waiters.setdefault(model, []).append(waiter)
        if waiter.is_queued:
            self._entries.setdefault(model, QueueEntry(model, claimed=False, since=waiter.since))

    def remove(self, model: str, waiter: Waiter) -> None:
        if waiter in self._waiters.get(model, ()):
            self._waiters[model].remove(waiter)
            self._forget_if_empty(model)

    def is_claimed(self, model: str) -> bool:
        return model in self._entries and self._entries[model].claimed

    def claim(self, model: str) -> None:
        self._set_claimed(model, True)

    def unclaim(self, model: str) -> None:
        self._set_claimed(model, False)

    def started(self, model: str) -> None:
        """Record that an instance starts, for the queue or by command: all current waiters wait for this one."""
        self.claim(model)
        for waiter in self._waiters.get(model, ()):
            waiter.saw_start = True

    def pop(self, model: str, limit: int | None) -> list[Waiter]:
        """Remove and return the waiters that an instance serves now, in order.

        At most `limit` of them use the model. The others wait until a request has ended.
        """
        self._entries.pop(model, None)
        taken: list[Waiter] = []
        left: list[Waiter] = []
        for waiter in self._waiters.pop(model, []):
            if waiter.grant.done():
                continue
            if waiter.touch and limit is not None and sum(one.touch for one in taken) >= limit:
                waiter.is_queued, waiter.saw_start = False, not waiter.may_load
                left.append(waiter)
            else:
                taken.append(waiter)
        if left:
            self._waiters[model] = left
        return taken

    @property
    def models_without_entry(self) -> list[str]:
        """Models that have waiters but no entry in the queue."""
        return [model for model in self._waiters if model not in self._entries]

    def requeue(self, model: str) -> None:
        """Queue the waiters for the next instance because theirs ends, except those that saw it start."""
        for waiter in self._waiters.get(model, ()):
            if not waiter.saw_start:
                waiter.is_queued = True
                self._entries.setdefault(model, QueueEntry(model, claimed=False, since=waiter.since))

    def retry(self, model: str) -> None:
        """Let the waiters wait for the next instance: theirs ended, and the next one is about to start."""
        for waiter in self._waiters.get(model, ()):
            waiter.saw_start = not waiter.may_load
        self.requeue(model)
        self.claim(model)

    def pop_all(self, model: str) -> list[Waiter]:
        self._entries.pop(model, None)
        return self._waiters.pop(model, [])

    def refuse(self, model: str, error: MakeError) -> None:
        _refuse(self.pop_all(model), error)

    def refuse_started(self, model: str, error: MakeError) -> None:
        """Refuse the waiters whose instance ended; the others keep their place for the next one."""
        _refuse(self._pop_started(model), error)

    def refuse_all(self, error: MakeError) -> None:
        _refuse(self._pop_everything(), error)

    def _pop_started(self, model: str) -> list[Waiter]:
        waiters = self._waiters.get(model, [])
        if waiters:
            self._waiters[model] = [waiter for waiter in waiters if not waiter.saw_start]
            self.unclaim(model)
            self._forget_if_empty(model)
        return [waiter for waiter in waiters if waiter.saw_start]

    def _pop_everything(self) -> list[Waiter]:
        everyone = [waiter for waiters in self._waiters.values() for waiter in waiters]
        self._waiters.clear()
        self._entries.clear()
        return everyone

    def _set_claimed(self, model: str, claimed: bool) -> None:
        if model in self._entries:
            self._entries[model] = replace(self._entries[model], claimed=claimed)

    def _forget_if_empty(self, model: str) -> None:
        waiters = self._waiters[model]
        if not any(waiter.is_queued for waiter in waiters):
            self._entries.pop(model, None)
        if not waiters:
            del self._waiters[model]


def _refuse(waiters: list[Waiter], error: MakeError) -> None:
    for waiter in waiters:
        if not waiter.grant.done():
            waiter.grant.set_exception(error())
