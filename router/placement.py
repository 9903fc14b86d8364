"""Who must leave, who may start and who waits in vain: pure decisions over a snapshot.

Called by `lifecycle` after every change, and when a model's time is over; knows no clock, process, log or await. The
rules:

- A process counts against models-max from its start until it is reaped. models-max ≤ 0: no limit, nobody is evicted.
- The queue has one entry per model and is served strictly first come, first served: only its head may start, once a
  place is free.
- As many idle models are asked to leave as unclaimed entries lack places; never one that is busy, loading, stopping
  or wanted by an entry.
- The one used longest ago leaves first.
- A pinned model is never evicted. Once pinned models have all places, what is queued is refused at once.
- A model whose `ttl` is over since it was last used leaves, if it is idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .states import State


@dataclass(frozen=True, slots=True)
class Stay:
    """How long a model that nobody uses stays."""

    ttl: float | None = None
    """Seconds; None: until its place is needed."""
    pinned: bool = False
    """For ever, even when its place is needed."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One model as placement sees it."""

    name: str
    state: State
    leases: int
    last_used: float
    idle_since: float = 0.0
    """When its last use ended."""
    stay: Stay = Stay()

    @property
    def is_pinned(self) -> bool:
        return self.stay.pinned and self.state.is_running and self.state is not State.STOPPING

    @property
    def expires_at(self) -> float | None:
        """When it is to leave, if nobody uses it until then."""
        if self.stay.pinned or self.stay.ttl is None or self.leases or not self.state.is_ready:
            return None
        return self.idle_since + self.stay.ttl


@dataclass(frozen=True, slots=True)
class Entry:
    """One queued model. `claimed`: its start is under way, and until its waiters are served it must not be evicted."""

    model: str
    claimed: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    residents: tuple[Resident, ...]
    queue: tuple[Entry, ...]
    models_max: int
    starts_held: bool = False
    """A reload is under way: nothing may start before it ends."""
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Eviction:
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    evict: tuple[Eviction, ...] = ()
    start: str | None = None
    refuse: tuple[Refusal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.evict or self.refuse) or self.start is not None


def tick(snapshot: Snapshot) -> Decision:
    """What to do now for the queue."""
    if not snapshot.queue:
        return Decision()
    if refused := _refusals(snapshot):
        return Decision(refuse=refused)
    return Decision(evict=_evictions(snapshot), start=_next_start(snapshot))


def expired(snapshot: Snapshot) -> tuple[Eviction, ...]:
    """The idle whose time is over."""
    return tuple(
        Eviction(resident.name, f"not used for {resident.stay.ttl:g} s")
        for resident in snapshot.residents
        if resident.expires_at is not None and resident.expires_at <= snapshot.now
    )


def next_expiry(snapshot: Snapshot) -> float | None:
    """When to ask for the expired again, if nothing changes until then."""
    later = (resident.expires_at for resident in snapshot.residents if resident.expires_at is not None)
    return min((when for when in later if when > snapshot.now), default=None)


def why_no_place(snapshot: Snapshot) -> str:
    """Why no other model can ever be loaded as things are; nothing if one can."""
    pinned = sorted(resident.name for resident in snapshot.residents if resident.is_pinned)
    if snapshot.models_max <= 0 or len(pinned) < snapshot.models_max:
        return ""
    return f"pinned models have all {snapshot.models_max} places (--models-max): {', '.join(pinned)}"


def has_capacity(snapshot: Snapshot) -> bool:
    return snapshot.models_max <= 0 or _running(snapshot) < snapshot.models_max


def victim(snapshot: Snapshot) -> str | None:
    """The idle model used longest ago that nobody waits for, if there is one."""
    ranked = _victims(snapshot)
    return ranked[0].name if ranked else None


def _refusals(snapshot: Snapshot) -> tuple[Refusal, ...]:
    obstacle = why_no_place(snapshot)
    if not obstacle:
        return ()
    pinned = {resident.name for resident in snapshot.residents if resident.is_pinned}
    waiting = (entry.model for entry in snapshot.queue if not entry.claimed and entry.model not in pinned)
    return tuple(Refusal(model, obstacle) for model in waiting)


def _next_start(snapshot: Snapshot) -> str | None:
    head = snapshot.queue[0]
    if head.claimed or snapshot.starts_held or not has_capacity(snapshot):
        return None
    is_down = all(resident.state.is_down for resident in snapshot.residents if resident.name == head.model)
    return head.model if is_down else None


def _evictions(snapshot: Snapshot) -> tuple[Eviction, ...]:
    if snapshot.models_max <= 0:
        return ()
    unclaimed = sum(1 for entry in snapshot.queue if not entry.claimed)
    chosen = _victims(snapshot)[: max(0, unclaimed - _free(snapshot))]
    reason = f"idle, and {len(snapshot.queue)} queued for {snapshot.models_max} places"
    return tuple(Eviction(resident.name, reason) for resident in chosen)


def _free(snapshot: Snapshot) -> int:
    """Places that are free or becoming so, less those that a claimed entry is about to take."""
    down = {resident.name for resident in snapshot.residents if resident.state.is_down}
    stopping = _count(snapshot.residents, State.STOPPING)
    pending = sum(1 for entry in snapshot.queue if entry.claimed and entry.model in down)
    return snapshot.models_max - _running(snapshot) + stopping - pending


def _victims(snapshot: Snapshot) -> list[Resident]:
    wanted = {entry.model for entry in snapshot.queue}
    idle = (
        resident
        for resident in snapshot.residents
        if resident.state.is_ready and not resident.leases and not resident.is_pinned and resident.name not in wanted
    )
    return sorted(idle, key=lambda resident: (resident.last_used, resident.name))


def _running(snapshot: Snapshot) -> int:
    return sum(1 for resident in snapshot.residents if resident.state.is_running)


def _count(residents: Iterable[Resident], state: State) -> int:
    return sum(1 for resident in residents if resident.state is state)
