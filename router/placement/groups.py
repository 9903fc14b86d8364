"""Which models may not run beside which, by the groups of their presets. Pure.

Of a group with `swap` one model runs at a time. One of an `exclusive` group starts once those of all other groups, and
those of none, are gone, but for pinned ones and those of a `persistent` group; others may join it later.
"""

from __future__ import annotations

from collections.abc import Sequence

from .queue_order import due, is_overdue
from .snapshot import Entry, Resident, Snapshot
from .states import State


def excludes(new: Resident, old: Resident) -> bool:
    """Whether `old` must be gone before `new` may start."""
    mine, other = new.manners.group, old.manners.group
    if mine.name and mine.name == other.name:
        return mine.swap
    is_pinned = old.stay.pinned and old.state is not State.STOPPING
    return mine.exclusive and not other.persistent and not is_pinned


def in_the_way(snapshot: Snapshot, model: str) -> list[Resident]:
    """Those that run, or are about to, and must be gone before `model` starts."""
    new = snapshot.resident(model)
    starting = {entry.model for entry in snapshot.queue if entry.claimed}
    others = (one for one in snapshot.residents if one.name != model and (one.state.is_running or one.name in starting))
    return [one for one in others if excludes(new, one)]


def leaving_for(snapshot: Snapshot, model: str, victims: Sequence[Resident]) -> list[Resident] | None:
    """Those of `victims` that leave for `model`; None: another is in its way, so that they would leave in vain."""
    obstacles = [one for one in in_the_way(snapshot, model) if one.state is not State.STOPPING]
    return obstacles if all(one in victims for one in obstacles) else None


def next_of(snapshot: Snapshot, victims: Sequence[Resident]) -> Entry | None:
    """Whose turn it is. A model that waits for one in use is passed by those not in its way, until it is overdue."""
    passed: list[Resident] = []
    for entry in due(snapshot):
        resident = snapshot.resident(entry.model)
        if any(excludes(earlier, resident) for earlier in passed):
            continue
        if is_overdue(snapshot, entry) or leaving_for(snapshot, entry.model, victims) is not None:
            return entry
        passed.append(resident)
    return None


def why_excluded(snapshot: Snapshot, model: str) -> str:
    """By a pinned model, and so for good; nothing if it is not."""
    pinned = [one for one in in_the_way(snapshot, model) if one.is_pinned]
    names = ", ".join(sorted(one.name for one in pinned))
    group = snapshot.resident(model).manners.group.name
    return f"its group '{group}' has one model at a time, and one of it is pinned: {names}" if pinned else ""
