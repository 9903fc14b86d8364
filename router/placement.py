"""Who must leave, who may start and who waits in vain: pure decisions over a snapshot.

Called by `lifecycle` after every change, and when a model's time is over; knows no clock, process, log or await. The
rules:

- A process counts against models-max from its start until it is reaped. models-max ≤ 0: no limit, nobody is evicted.
- It takes its space of memory just as long. What all take together stays below the limit.
- The queue has one entry per model and is served strictly first come, first served: only its head may start, once a
  place is free and its space as well.
- As many idle models are asked to leave as unclaimed entries lack places; never one that is busy, loading, stopping
  or wanted by an entry. The one used longest ago leaves first.
- For the head's space the fewest leave, and of those the ones least worth keeping; nobody, if that would not do.
- A pinned model is never evicted. Once pinned models have all places, what is queued is refused at once, and so is a
  head whose space would not be free with all others gone.
- A model whose `ttl` is over since it was last used leaves, if it is idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .space import NOTHING, UNBOUNDED, Limit, Space, fewest, total
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
    space: Space = NOTHING
    """What it takes; as long as it is down, what it is expected to take."""
    load_seconds: float = 1.0
    """What it costs to have it back."""

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
    limit: Limit = UNBOUNDED
    now: float = 0.0
    """On the clock of `last_used`."""
    is_settling: bool = False
    """A worker has just gone, and its memory may not be back yet: nobody is refused for that."""


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


def why_never(snapshot: Snapshot, model: str) -> str:
    """Why `model` would wait in vain as things are; nothing if its turn may come."""
    pinned = [resident for resident in snapshot.residents if resident.is_pinned and resident.name != model]
    names = ", ".join(sorted(resident.name for resident in pinned))
    if 0 < snapshot.models_max <= len(pinned):
        return f"pinned models have all {snapshot.models_max} places (--models-max): {names}"
    needs, kept = _resident(snapshot, model).space, total(resident.space for resident in pinned)
    if (needs + kept).fits(snapshot.limit):
        return ""
    beside = f", of which pinned ones have {kept}: {names}" if pinned else ""
    return f"it needs {needs} of memory, and models may take {snapshot.limit}{beside}"


def has_place(snapshot: Snapshot) -> bool:
    return snapshot.models_max <= 0 or _running(snapshot) < snapshot.models_max


def has_space(snapshot: Snapshot, model: str) -> bool:
    return (_taken(snapshot, but=model) + _resident(snapshot, model).space).fits(snapshot.limit)


def has_room(snapshot: Snapshot, model: str) -> bool:
    return has_place(snapshot) and has_space(snapshot, model)


def waits_for_space(snapshot: Snapshot) -> bool:
    """Whether the head's turn may come without any model changing: when others on this machine give memory back."""
    head = snapshot.queue[0] if snapshot.queue else None
    return head is not None and not head.claimed and has_place(snapshot) and not has_space(snapshot, head.model)


def victims_for(snapshot: Snapshot, model: str) -> list[str]:
    """Idle models that nobody waits for and that must leave for one that is loaded by command; none, if in vain."""
    place = [] if has_place(snapshot) else _victims(snapshot)[:1]
    space = _victims_for_space(snapshot, model, place)
    return [resident.name for resident in [*place, *space]]


def _refusals(snapshot: Snapshot) -> tuple[Refusal, ...]:
    """Memory is looked at once nobody leaves any more: what they had counts as taken until the system has it back."""
    may_grow = snapshot.is_settling or _count(snapshot.residents, State.STOPPING) > 0
    judged = replace(snapshot, limit=UNBOUNDED) if may_grow else snapshot
    waiting = (entry.model for entry in snapshot.queue if not entry.claimed)
    reasons = ((model, why_never(judged, model)) for model in waiting if not _resident(snapshot, model).is_pinned)
    return tuple(Refusal(model, reason) for model, reason in reasons if reason)


def _next_start(snapshot: Snapshot) -> str | None:
    head = snapshot.queue[0]
    if head.claimed or snapshot.starts_held or not has_room(snapshot, head.model):
        return None
    return head.model if _resident(snapshot, head.model).state.is_down else None


def _evictions(snapshot: Snapshot) -> tuple[Eviction, ...]:
    chosen: list[Resident] = []
    if snapshot.models_max > 0:
        unclaimed = sum(1 for entry in snapshot.queue if not entry.claimed)
        chosen = _victims(snapshot)[: max(0, unclaimed - _free(snapshot))]
    reason = f"idle, and {len(snapshot.queue)} queued for {snapshot.models_max} places"
    evictions = [Eviction(resident.name, reason) for resident in chosen]
    head = snapshot.queue[0]
    if not head.claimed and not snapshot.starts_held:
        reason = f"idle, and {head.model} needs {_resident(snapshot, head.model).space} of memory"
        more = _victims_for_space(snapshot, head.model, chosen)
        evictions += [Eviction(resident.name, reason) for resident in more]
    return tuple(evictions)


def _victims_for_space(snapshot: Snapshot, model: str, leaving: list[Resident]) -> list[Resident]:
    """Beside those who leave anyway."""
    staying = [resident for resident in _victims(snapshot) if resident not in leaving]
    gone = total(resident.space for resident in leaving)
    stopping = total(resident.space for resident in snapshot.residents if resident.state is State.STOPPING)
    taken = _taken(snapshot, but=model) - gone - stopping + _resident(snapshot, model).space
    ranked = sorted(staying, key=lambda resident: (-_cheapness(snapshot, resident), resident.name))
    return fewest([(resident, resident.space) for resident in ranked], taken, snapshot.limit) or []


def _cheapness(snapshot: Snapshot, resident: Resident) -> float:
    """How long nobody wanted it and how much it frees, for each second that it costs to have it back."""
    idle = max(0.0, snapshot.now - resident.last_used)
    return idle * (resident.space.host + resident.space.device) / max(resident.load_seconds, 0.01)


def _taken(snapshot: Snapshot, but: str) -> Space:
    """By all that run, and by those whose start is under way; all others."""
    starting = {entry.model for entry in snapshot.queue if entry.claimed}
    return total(
        resident.space
        for resident in snapshot.residents
        if resident.name != but and (resident.state.is_running or resident.name in starting)
    )


def _resident(snapshot: Snapshot, name: str) -> Resident:
    return next(resident for resident in snapshot.residents if resident.name == name)


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
