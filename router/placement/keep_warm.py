"""Which model is loaded though nobody asks for it: those that are to be kept warm. Pure.

One at a time, while nobody waits and nothing else loads, and only where there is room without anybody leaving: after an
eviction it comes back once others have left, after a failure when the pause for that is over.
"""

from __future__ import annotations

from collections.abc import Iterator

from .placement import has_place, may_start
from .snapshot import Resident, Snapshot
from .states import State


def next_warm(snapshot: Snapshot) -> str | None:
    if snapshot.queue or snapshot.starts_held:
        return None
    if any(resident.state is State.LOADING for resident in snapshot.residents):
        return None
    fitting = (one.name for one in _wanted(snapshot) if may_start(snapshot, one.name))
    return next(fitting, None)


def next_look(snapshot: Snapshot) -> float | None:
    """When a pause is over."""
    later = (one.warm_from for one in snapshot.residents if one.warm_from is not None and one.state.is_down)
    return min((when for when in later if when > snapshot.now), default=None)


def waits_for_space(snapshot: Snapshot) -> bool:
    """Whether memory that others on this machine give back would do, which nobody tells."""
    return has_place(snapshot) and any(_wanted(snapshot))


def _wanted(snapshot: Snapshot) -> Iterator[Resident]:
    """The most important first."""
    down = [one for one in snapshot.residents if one.warm_from is not None and one.state.is_down]
    due = [one for one in down if one.warm_from is not None and one.warm_from <= snapshot.now]
    return iter(sorted(due, key=lambda one: (-one.manners.priority, one.name)))
