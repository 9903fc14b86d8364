"""Memory as placement counts it: of the machine and of the devices, what all workers may have, and who frees enough.

Pure. `memory` reads what the system says, `needs` what models will take; nothing here knows of models or processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

MOST_SETS = 5000
"""Sets of victims that are looked at before the largest ones are simply taken."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of the machine's memory, and of the devices' taken together."""

    host: int = 0
    device: int = 0

    def __add__(self, other: Space) -> Space:
        return Space(self.host + other.host, self.device + other.device)

    def __sub__(self, other: Space) -> Space:
        return Space(self.host - other.host, self.device - other.device)

    def fits(self, limit: Limit) -> bool:
        return (limit.host is None or self.host <= limit.host) and (limit.device is None or self.device <= limit.device)

    def __str__(self) -> str:
        parts = [readable(self.host)] if self.host or not self.device else []
        return " and ".join([*parts, f"{readable(self.device)} of device memory"] if self.device else parts)


@dataclass(frozen=True, slots=True)
class Limit:
    """Bytes that all workers together may take. None: nobody counts."""

    host: int | None = None
    device: int | None = None

    def __str__(self) -> str:
        host = [readable(self.host)] if self.host is not None else []
        device = [f"{readable(self.device)} of device memory"] if self.device is not None else []
        return " and ".join(host + device) or "no limit"


NOTHING = Space()
UNBOUNDED = Limit()


def total(spaces: Iterable[Space]) -> Space:
    return sum(spaces, NOTHING)


def fewest(candidates: Sequence[tuple[T, Space]], taken: Space, limit: Limit) -> list[T] | None:
    """The fewest candidates without which `taken` fits; of sets of equal size the one with the earliest.

    None: it would not fit without all of them either.
    """
    if taken.fits(limit):
        return []
    if not _without(taken, candidates).fits(limit):
        return None
    looked_at = 0
    for size in range(1, len(candidates)):
        for chosen in itertools.combinations(candidates, size):
            looked_at += 1
            if _without(taken, chosen).fits(limit):
                return [candidate for candidate, _ in chosen]
            if looked_at > MOST_SETS:
                return _largest(candidates, taken, limit)
    return [candidate for candidate, _ in candidates]


def _largest(candidates: Sequence[tuple[T, Space]], taken: Space, limit: Limit) -> list[T]:
    """Short of one memory only those that free some of it are of use; the largest first."""
    by_size = sorted(candidates, key=lambda pair: _relief(pair[1], taken, limit), reverse=True)
    for size in range(1, len(by_size)):
        if _without(taken, by_size[:size]).fits(limit):
            return [candidate for candidate, _ in by_size[:size]]
    return [candidate for candidate, _ in by_size]


def _relief(space: Space, taken: Space, limit: Limit) -> int:
    host = space.host if limit.host is not None and taken.host > limit.host else 0
    device = space.device if limit.device is not None and taken.device > limit.device else 0
    return host + device


def _without(taken: Space, chosen: Sequence[tuple[T, Space]]) -> Space:
    return taken - total(space for _, space in chosen)


def readable(size: int) -> str:
    """`1.5 GiB`, `300 MiB`."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{max(0, size) >> 20} MiB"
