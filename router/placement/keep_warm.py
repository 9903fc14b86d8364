"""Which model is loaded though nobody asks for it: those that are to be kept warm. Pure.

One at a time, while nobody waits and nothing else loads, and only where there is room without anybody leaving: after an
eviction it comes back once others have left, after a failure when the pause for that is over.
"""

from __future__ import annotations

from collections.abc import Iterator

from .placement import has_place, may_start
from .snapshot import PlacementSnapshot, Resident
from .states import ModelState


def next_warm(snapshot: PlacementSnapshot) -> str | None:
    if snapshot.queue or snapshot.starts_held:
        return None
    if any(resident.state is ModelState.LOADING for resident in snapshot.residents):
        return None
    fitting = (one.name for one in _warm_candidates(snapshot) if may_start(snapshot, one.name))
    return next(fitting, None)


def next_check(snapshot: PlacementSnapshot) -> float | None:
    """When a pause is over."""
    later = (one.warm_from for one in snapshot.residents if one.warm_from is not None and one.state.is_down)
    return min((when for when in later if when > snapshot.now), default=None)


def waits_for_space(snapshot: PlacementSnapshot) -> bool:
    """Whether memory that others on this machine give back would do, which nobody tells."""
    return has_place(snapshot) and any(_warm_candidates(snapshot))


def _warm_candidates(snapshot: PlacementSnapshot) -> Iterator[Resident]:
    """The most important first."""
    down = [one for one in snapshot.residents if one.warm_from is not None and one.state.is_down]
    due = [one for one in down if one.warm_from is not None and one.warm_from <= snapshot.now]
    return iter(sorted(due, key=lambda one: (-one.policy.priority, one.name)))
