"""Which models may not run beside which, by the groups of their presets. Pure.

Of a group with `swap` one model runs at a time. One of an `exclusive` group starts once those of all other groups, and
those of none, are gone, but for pinned ones and those of a `persistent` group; others may join it later.
"""

from __future__ import annotations

from collections.abc import Sequence

from .queue_order import is_overdue, waiting_in_order
from .snapshot import PlacementSnapshot, QueueEntry, Resident
from .states import ModelState


def excludes(new: Resident, old: Resident) -> bool:
    """Whether `old` must be gone before `new` may start."""
    mine, other = new.policy.group, old.policy.group
    if mine.name and mine.name == other.name:
        return mine.swap
    is_pinned = old.retention.pinned and old.state is not ModelState.STOPPING
    return mine.exclusive and not other.persistent and not is_pinned


def blocking_models(snapshot: PlacementSnapshot, model: str) -> list[Resident]:
    """Those that run, or are about to, and must be gone before `model` starts."""
    new = snapshot.resident(model)
    starting = {entry.model for entry in snapshot.queue if entry.claimed}
    others = (one for one in snapshot.residents if one.name != model and (one.state.is_running or one.name in starting))
    return [one for one in others if excludes(new, one)]


def group_victims(snapshot: PlacementSnapshot, model: str, victims: Sequence[Resident]) -> list[Resident] | None:
    """Those of `victims` that leave for `model`; None: another is in its way, so that they would leave in vain."""
    obstacles = [one for one in blocking_models(snapshot, model) if one.state is not ModelState.STOPPING]
    return obstacles if all(one in victims for one in obstacles) else None


def next_in_turn(snapshot: PlacementSnapshot, victims: Sequence[Resident]) -> QueueEntry | None:
    """Whose turn it is. A model that waits for one in use is passed by those not in its way, until it is overdue."""
    passed: list[Resident] = []
    for entry in waiting_in_order(snapshot):
        resident = snapshot.resident(entry.model)
        if any(excludes(earlier, resident) for earlier in passed):
            continue
        if is_overdue(snapshot, entry) or group_victims(snapshot, entry.model, victims) is not None:
            return entry
        passed.append(resident)
    return None


def exclusion_reason(snapshot: PlacementSnapshot, model: str) -> str:
    """By a pinned model, and so for good; nothing if it is not."""
    pinned = [one for one in blocking_models(snapshot, model) if one.is_pinned]
    names = ", ".join(sorted(one.name for one in pinned))
    group = snapshot.resident(model).policy.group.name
    return f"its group '{group}' has one model at a time, and one of it is pinned: {names}" if pinned else ""
