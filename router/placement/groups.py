"""Decide which models may not run at the same time, by the groups of their presets. Pure.

In a group with `swap` one model runs at a time. A model of an `exclusive` group starts when no model of another group
or without a group runs any more, except pinned models and those of a `persistent` group. Others may start later.
"""

from __future__ import annotations

from collections.abc import Sequence

from .queue_order import is_overdue, waiting_in_order
from .snapshot import PlacementSnapshot, QueueEntry, Resident
from .states import ModelState


def excludes(new: Resident, old: Resident) -> bool:
    """Return True if `old` must have ended before `new` may start."""
    mine, other = new.policy.group, old.policy.group
    if mine.name and mine.name == other.name:
        return mine.swap
    is_pinned = old.retention.pinned and old.state is not ModelState.STOPPING
    return mine.exclusive and not other.persistent and not is_pinned


def blocking_models(snapshot: PlacementSnapshot, model: str) -> list[Resident]:
    """Return the models that run or are about to start, and must have ended before `model` starts."""
    new = snapshot.resident(model)
    starting = {entry.model for entry in snapshot.queue if entry.claimed}
    others = (one for one in snapshot.residents if one.name != model and (one.state.is_running or one.name in starting))
    return [one for one in others if excludes(new, one)]


def group_victims(snapshot: PlacementSnapshot, model: str, victims: Sequence[Resident]) -> list[Resident] | None:
    """Return those of `victims` that `model` excludes; None: evicting them is useless, as another model blocks it."""
    obstacles = [one for one in blocking_models(snapshot, model) if one.state is not ModelState.STOPPING]
    return obstacles if all(one in victims for one in obstacles) else None


def next_in_turn(snapshot: PlacementSnapshot, victims: Sequence[Resident]) -> QueueEntry | None:
    """Return the entry whose turn it is; None if there is none.

    A model that is blocked by a busy model is skipped until it is overdue; others that it does not exclude pass it.
    """
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
    """Return the reason if a pinned model of its group blocks `model` permanently; else an empty string."""
    pinned = [one for one in blocking_models(snapshot, model) if one.is_pinned]
    names = ", ".join(sorted(one.name for one in pinned))
    group = snapshot.resident(model).policy.group.name
    return (
        f"its group '{group}' runs one model at a time, and a pinned model of the group is running: {names}"
        if pinned
        else ""
    )
