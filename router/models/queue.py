"""Requests that wait for a model: who, for which, and in what order the models are due.

Plain bookkeeping owned by `lifecycle`; `placement` decides on its `entries`. A model has one entry in the queue
however many wait for it, and the entry goes with its last queued waiter. Whoever comes while the model already loads
has no need of an entry and only waits.
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
"""Each waiter gets an exception of its own."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to one request on a worker that stays until it is given back."""

    model: str
    endpoint: str
    """Path of the worker's unix socket, or `host:port`."""
    instance: object
    """Which run of the model's worker this is; for `lifecycle` only."""
    touch: bool = True
    """It counts as use of the model."""
    preset: Preset | None = None
    """What was asked for: the model's, or a variant's."""


@dataclass(slots=True, eq=False)
class Waiter:
    grant: asyncio.Future[Lease]
    touch: bool
    retention: Retention | None
    """What its request wants for the model from now on."""
    since: float
    is_queued: bool
    saw_start: bool
    """It waits for an instance that exists; when that one goes down before it was ready, the waiter is refused."""
    may_load: bool = True
    """When the instance goes down that it waits for, it waits for the next one."""


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
        """An instance comes up, for the queue or by command: all who wait now wait for this one."""
        self.claim(model)
        for waiter in self._waiters.get(model, ()):
            waiter.saw_start = True

    def pop(self, model: str, limit: int | None) -> list[Waiter]:
        """Those that an instance serves now, in order; `limit` of them use it. The others wait until one has ended."""
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
        """Models that some wait for, but nobody in the queue."""
        return [model for model in self._waiters if model not in self._entries]

    def requeue(self, model: str) -> None:
        """The instance they waited for goes: they wait for the next one, but for those that saw it start."""
        for waiter in self._waiters.get(model, ()):
            if not waiter.saw_start:
                waiter.is_queued = True
                self._entries.setdefault(model, QueueEntry(model, claimed=False, since=waiter.since))

    def retry(self, model: str) -> None:
        """The instance they waited for went down, and its successor is about to start."""
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
        """Those whose instance went down; the others keep their place for the next one."""
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
