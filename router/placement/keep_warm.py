"""Decide which model with `keep-warm` is loaded without a request. Pure.

One at a time, while no request waits and no other model loads, and only if there is room without an eviction. After
its own eviction a model is loaded again when others have ended, after a failure when its back-off is over.
"""

from __future__ import annotations

from collections.abc import Iterator

from .placement import has_place, may_start
from .snapshot import PlacementSnapshot, Resident
from .states import ModelState


def next_warm(snapshot: PlacementSnapshot) -> str | None:
    """Return the model to load now; None if there is none."""
    if snapshot.queue or snapshot.starts_held:
        return None
    if any(resident.state is ModelState.LOADING for resident in snapshot.residents):
        return None
    fitting = (one.name for one in _warm_candidates(snapshot) if may_start(snapshot, one.name))
    return next(fitting, None)


def next_check(snapshot: PlacementSnapshot) -> float | None:
    """Return the time at which the next back-off ends; None if there is none."""
    later = (one.warm_from for one in snapshot.residents if one.warm_from is not None and one.state.is_down)
    return min((when for when in later if when > snapshot.now), default=None)


def waits_for_space(snapshot: PlacementSnapshot) -> bool:
    """Return True if memory that other programs free would allow a load; no event reports that."""
    return has_place(snapshot) and any(_warm_candidates(snapshot))


def _warm_candidates(snapshot: PlacementSnapshot) -> Iterator[Resident]:
    """Yield the models that are due, the highest priority first."""
    down = [one for one in snapshot.residents if one.warm_from is not None and one.state.is_down]
    due = [one for one in down if one.warm_from is not None and one.warm_from <= snapshot.now]
    return iter(sorted(due, key=lambda one: (-one.policy.priority, one.name)))
