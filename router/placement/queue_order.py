"""Whose turn it is among models that wait for a place, and how long those that have one are left in peace. Pure.

The highest priority is next, and of equals the one that came first. Whoever has waited for `PlacementRules.max_wait`
goes before all priorities and minimum stays, so that none of these can keep anybody waiting for ever.
"""

from __future__ import annotations

from collections.abc import Iterator

from .snapshot import PlacementSnapshot, QueueEntry, Resident


def waiting_in_order(snapshot: PlacementSnapshot) -> list[QueueEntry]:
    """Those whose start is not under way, the next one first."""
    waiting = [entry for entry in snapshot.queue if not entry.claimed]
    return sorted(waiting, key=lambda entry: _rank(snapshot, entry))  # which leaves equals in order of arrival


def is_overdue(snapshot: PlacementSnapshot, entry: QueueEntry) -> bool:
    return snapshot.now - entry.since >= snapshot.rules.max_wait


def is_any_overdue(snapshot: PlacementSnapshot) -> bool:
    """Of those that wait for the place of another."""
    waiting = (entry for entry in snapshot.queue if not entry.claimed)
    return any(is_overdue(snapshot, entry) and snapshot.resident(entry.model).state.is_down for entry in waiting)


def is_protected(snapshot: PlacementSnapshot, resident: Resident) -> bool:
    """It was loaded a short time ago, and nobody has waited for too long."""
    if not resident.policy.min_stay or _protected_until(resident) <= snapshot.now:
        return False
    return not any(is_overdue(snapshot, entry) for entry in snapshot.queue if not entry.claimed)


def next_check(snapshot: PlacementSnapshot) -> float | None:
    """When to ask again, if nothing changes until then but the time."""
    return min((when for when in _turns(snapshot) if when > snapshot.now), default=None)


def _turns(snapshot: PlacementSnapshot) -> Iterator[float]:
    yield from (entry.since + snapshot.rules.max_wait for entry in snapshot.queue if not entry.claimed)
    stays = (resident for resident in snapshot.residents if resident.state.is_ready and resident.policy.min_stay)
    yield from (_protected_until(resident) for resident in stays)


def _rank(snapshot: PlacementSnapshot, entry: QueueEntry) -> tuple[bool, int]:
    if is_overdue(snapshot, entry):
        return (False, 0)
    return (True, -snapshot.resident(entry.model).policy.priority)


def _protected_until(resident: Resident) -> float:
    return resident.ready_since + resident.policy.min_stay
