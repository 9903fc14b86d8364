"""Decide the order of models that wait for a load, and how long a loaded model is protected from eviction. Pure.

The highest priority is next; equal ones are in order of arrival. A model that has waited for `PlacementRules.max_wait`
overrides all priorities and minimum stays, so that these can never make a model wait forever.
"""

from __future__ import annotations

from collections.abc import Iterator

from .snapshot import PlacementSnapshot, QueueEntry, Resident


def waiting_in_order(snapshot: PlacementSnapshot) -> list[QueueEntry]:
    """Return the entries that are not claimed, the next one first."""
    waiting = [entry for entry in snapshot.queue if not entry.claimed]
    return sorted(
        waiting, key=lambda entry: _rank(snapshot, entry)
    )  # a stable sort: equal ones remain in order of arrival


def is_overdue(snapshot: PlacementSnapshot, entry: QueueEntry) -> bool:
    return snapshot.now - entry.since >= snapshot.rules.max_wait


def is_any_overdue(snapshot: PlacementSnapshot) -> bool:
    """Return True if an unclaimed entry of a model without a process is overdue."""
    waiting = (entry for entry in snapshot.queue if not entry.claimed)
    return any(is_overdue(snapshot, entry) and snapshot.resident(entry.model).state.is_down for entry in waiting)


def is_protected(snapshot: PlacementSnapshot, resident: Resident) -> bool:
    """Return True if its minimum stay is not over and no waiting entry is overdue."""
    if not resident.policy.min_stay or _protected_until(resident) <= snapshot.now:
        return False
    return not any(is_overdue(snapshot, entry) for entry in snapshot.queue if not entry.claimed)


def next_check(snapshot: PlacementSnapshot) -> float | None:
    """Return the time at which to decide again if no event happens before; None: time alone changes nothing."""
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
