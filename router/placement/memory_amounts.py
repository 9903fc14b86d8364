"""Amounts of memory for placement: host and devices, what all workers may use, and which victims free enough. Pure.

Nothing here knows models or processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

MOST_SETS = 2000
"""Sets of victims that are looked at before the largest ones are simply taken: at worst some 0.1 s."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of the machine's memory, and of each device's by its name; a device that is not named has none of it."""

    host: int = 0
    devices: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", {name: size for name, size in self.devices.items() if size})

    @property
    def device(self) -> int:
        """Of all devices together."""
        return sum(self.devices.values())

    @property
    def total(self) -> int:
        return self.host + self.device

    def __add__(self, other: Space) -> Space:
        return Space(self.host + other.host, _sum(self.devices, other.devices, 1))

    def __sub__(self, other: Space) -> Space:
        return Space(self.host - other.host, _sum(self.devices, other.devices, -1))

    def exceeding(self, left: Limit) -> Space:
        """What is lacking of each memory that it takes any of, if so much is left."""
        host = 0 if left.host is None or not self.host else max(0, self.host - left.host)
        counted = {name: size for name, size in self.devices.items() if name in left.devices}
        return Space(host, {name: max(0, size - left.devices[name]) for name, size in counted.items()})

    def fits(self, left: Limit) -> bool:
        return self.exceeding(left) == NOTHING

    def restricted_to(self, memories: Space) -> Space:
        """Only of the memories that the other has any of."""
        kept = {name: size for name, size in self.devices.items() if name in memories.devices}
        return Space(self.host if memories.host else 0, kept)

    def __str__(self) -> str:
        parts = [f"{format_bytes(self.host)} of memory"] if self.host or not self.devices else []
        return _joined([*parts, *_on_devices(self.devices)])


@dataclass(frozen=True, slots=True)
class Limit:
    """Bytes that all workers together may take, or that are left for one more. None, or no such device: nobody counts.

    Where too much is taken already, what is left is less than nothing.
    """

    host: int | None = None
    devices: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __sub__(self, taken: Space) -> Limit:
        host = None if self.host is None else self.host - taken.host
        return Limit(host, {name: size - taken.devices.get(name, 0) for name, size in self.devices.items()})

    def __add__(self, freed: Space) -> Limit:
        host = None if self.host is None else self.host + freed.host
        return Limit(host, {name: size + freed.devices.get(name, 0) for name, size in self.devices.items()})

    def restricted_to(self, memories: Space) -> Limit:
        kept = {name: size for name, size in self.devices.items() if name in memories.devices}
        return Limit(self.host if memories.host else None, kept)

    def __str__(self) -> str:
        host = [format_bytes(self.host)] if self.host is not None else []
        return _joined([*host, *_on_devices(self.devices)]) or "no limit"


NOTHING = Space()
UNBOUNDED = Limit()


def total(spaces: Iterable[Space]) -> Space:
    host, devices = 0, dict[str, int]()
    for space in spaces:
        host += space.host
        for name, size in space.devices.items():
            devices[name] = devices.get(name, 0) + size
    return Space(host, devices)


def smallest_sufficient_set(
    candidates: Sequence[tuple[T, Space]], left: Limit, lacking: Callable[[Limit], Space]
) -> list[T] | None:
    """The fewest candidates that leave enough when they go; of sets of equal size the one with the earliest.

    `left` is what is left beside all of them, `lacking` says what somebody lacks where so much is left. None: it would
    not do if all of them went.
    """
    if lacking(left) == NOTHING:
        return []
    if lacking(_without(left, candidates)) != NOTHING:
        return None
    looked_at = 0
    for size in range(1, len(candidates)):
        for chosen in itertools.combinations(candidates, size):
            looked_at += 1
            if lacking(_without(left, chosen)) == NOTHING:
                return [candidate for candidate, _ in chosen]
            if looked_at > MOST_SETS:
                return _useful_candidates(candidates, left, lacking)
    return [candidate for candidate, _ in candidates]


def _useful_candidates(
    candidates: Sequence[tuple[T, Space]], left: Limit, lacking: Callable[[Limit], Space]
) -> list[T]:
    """Only those are of use that free some of what is lacking; the largest first."""
    lacks = lacking(left)
    by_size = sorted(candidates, key=lambda pair: pair[1].restricted_to(lacks).total, reverse=True)
    for size in range(1, len(by_size)):
        if lacking(_without(left, by_size[:size])) == NOTHING:
            return [candidate for candidate, _ in by_size[:size]]
    return [candidate for candidate, _ in by_size]


def _without(left: Limit, chosen: Sequence[tuple[T, Space]]) -> Limit:
    return left + total(space for _, space in chosen)


def _sum(first: Mapping[str, int], second: Mapping[str, int], sign: int) -> dict[str, int]:
    return {name: first.get(name, 0) + sign * second.get(name, 0) for name in {**first, **second}}


def _on_devices(sizes: Mapping[str, int]) -> list[str]:
    return [f"{format_bytes(size)} on {name}" for name, size in sizes.items()]


def _joined(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)


def format_bytes(size: int) -> str:
    """`1.5 GiB`, `300 MiB`."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{max(0, size) >> 20} MiB"
