"""Amounts of memory for placement: on host and devices, the limit of all workers, and which victims free enough. Pure.

Independent of models and processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

MOST_SETS = 2000
"""Number of sets of victims that are tried before the largest victims are chosen instead; about 0.1 s at worst."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of host memory and of each device's memory by its name; a device without an entry counts as 0."""

    host: int = 0
    devices: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", {name: size for name, size in self.devices.items() if size})

    @property
    def device(self) -> int:
        """Bytes on all devices together."""
        return sum(self.devices.values())

    @property
    def total(self) -> int:
        return self.host + self.device

    def __add__(self, other: Space) -> Space:
        return Space(self.host + other.host, _sum(self.devices, other.devices, 1))

    def __sub__(self, other: Space) -> Space:
        return Space(self.host - other.host, _sum(self.devices, other.devices, -1))

    def exceeding(self, left: Limit) -> Space:
        """Return how much of each memory that it uses is lacking if `left` is free."""
        host = 0 if left.host is None or not self.host else max(0, self.host - left.host)
        counted = {name: size for name, size in self.devices.items() if name in left.devices}
        return Space(host, {name: max(0, size - left.devices[name]) for name, size in counted.items()})

    def fits(self, left: Limit) -> bool:
        return self.exceeding(left) == NOTHING

    def restricted_to(self, memories: Space) -> Space:
        """Return only the part in memories that `memories` uses too."""
        kept = {name: size for name, size in self.devices.items() if name in memories.devices}
        return Space(self.host if memories.host else 0, kept)

    def __str__(self) -> str:
        parts = [f"{format_bytes(self.host)} of memory"] if self.host or not self.devices else []
        return _joined([*parts, *_on_devices(self.devices)])


@dataclass(frozen=True, slots=True)
class Limit:
    """Bytes that all workers together may use, or that are free for one more. None or a missing device: not counted.

    A free amount is negative if too much is already used.
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
    """Return the fewest candidates whose eviction frees enough; of sets of equal size the one with the earliest.

    `left` is free while all of them run. `lacking` returns what is lacking if its argument is free. None: evicting all
    of them is not sufficient.
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
    """Return enough candidates, those first that free most of the memory that is lacking."""
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
    """Return `a`, `a and b` or `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)


def format_bytes(size: int) -> str:
    """Return text like `1.5 GiB` or `300 MiB`."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{max(0, size) >> 20} MiB"
