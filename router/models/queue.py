"""The requests that wait for each model, and the queue of models that wait for a load.

Plain bookkeeping of `reducer`; `placement` decides on its `entries`. A model has one entry in the queue, no
matter how many requests wait for it. The entry is removed with its last queued waiter. A request that arrives while
the model already loads waits without an entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ..placement.snapshot import QueueEntry, Retention

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset


class LeaseRequest(Struct, frozen=True, eq=False):
    """A request that asks for a lease."""

    model: str
    """Name or alias, as the client gave it."""
    may_load: bool = True
    """True if it waits for the next instance when none runs, or when the one that it waits for ends."""
    touch: bool = True
    """True if the request counts as use of the model."""
    retention: Retention | None = None
    """The retention that the request sets for the model."""


class Command(Struct, frozen=True, eq=False):
    """A command that waits for its end."""

    what: str


Asker = LeaseRequest | Command
"""What waits for an answer; compared by identity."""


class Lease(Struct, frozen=True):
    """The right to send one request to a worker; the worker is not evicted before the lease is released."""

    model: str
    endpoint: str
    """Path of the worker's unix socket, or `host:port`."""
    instance: object
    """The `Instance` of the model's worker; for `reducer` and `lifecycle`."""
    preset: Preset
    """The requested preset: the model's or a variant's."""
    touch: bool = True
    """True if the request counts as use of the model."""


class Waiter(Struct, eq=False):
    request: LeaseRequest
    since: float
    is_queued: bool
    saw_start: bool
    """True if it waits for an existing instance. If that instance ends before it is ready, the waiter is refused."""
    variant: Preset | None = None
    """The requested preset, if it is a variant."""


class RequestQueue:
    def __init__(self) -> None:
        self._entries: dict[str, QueueEntry] = {}  # in order of arrival
        self._waiters: dict[str, list[Waiter]] = {}

    def __repr__(self) -> str:
        waiting = {name: len(waiters) for name, waiters in self._waiters.items()}
        order = [f"{entry.model}{' (claimed)' if entry.claimed else ''}" for entry in self._entries.values()]
        return f"<RequestQueue {self.count_all()} waiting {waiting}, order {order}>"

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

    def remove(self, request: LeaseRequest) -> None:
        for model, waiters in self._waiters.items():
            for waiter in waiters:
                if waiter.request is request:
                    waiters.remove(waiter)
                    self._forget_if_empty(model)
                    return

    def is_claimed(self, model: str) -> bool:
        return model in self._entries and self._entries[model].claimed

    def claim(self, model: str) -> None:
        self._set_claimed(model, True)

    def unclaim(self, model: str) -> None:
        self._set_claimed(model, False)

    def started(self, model: str) -> None:
        """Record that an instance starts, for the queue or explicitly: all current waiters wait for this one."""
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
            if waiter.request.touch and limit is not None and sum(one.request.touch for one in taken) >= limit:
                waiter.is_queued, waiter.saw_start = False, not waiter.request.may_load
                left.append(waiter)
            else:
                taken.append(waiter)
        if left:
            self._waiters[model] = left
        return taken

    @property
    def is_empty(self) -> bool:
        """True if no request waits."""
        return not self._waiters

    @property
    def models(self) -> list[str]:
        """Models that have waiters."""
        return list(self._waiters)

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
        self.wait_for_next(model)
        self.claim(model)

    def wait_for_next(self, model: str) -> None:
        """Let the waiters wait for the next instance because theirs ended, except those that may not load."""
        for waiter in self._waiters.get(model, ()):
            waiter.saw_start = not waiter.request.may_load
        self.unclaim(model)
        self.requeue(model)

    def pop_all(self, model: str) -> list[Waiter]:
        self._entries.pop(model, None)
        return self._waiters.pop(model, [])

    def pop_started(self, model: str) -> list[Waiter]:
        """Remove and return the waiters whose instance ended; the others keep their place for the next one."""
        waiters = self._waiters.get(model, [])
        if waiters:
            self._waiters[model] = [waiter for waiter in waiters if not waiter.saw_start]
            self.unclaim(model)
            self._forget_if_empty(model)
        return [waiter for waiter in waiters if waiter.saw_start]

    def pop_everything(self) -> list[Waiter]:
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
