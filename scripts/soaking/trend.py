"""Checks if a series of measurements grows: compares its last third with its first, after a warm-up. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP = 0.25
"""The share of a run in which caches are filled and memory pools grow."""
ENOUGH = 24
"""Fewer measurements than this, eight per third, are too random to show a trend."""


@dataclass(frozen=True)
class Trend:
    name: str
    unit: str
    before: float
    after: float
    allowed: float
    """The allowed growth."""

    @property
    def is_flat(self) -> bool:
        return self.after - self.before <= self.allowed

    def __str__(self) -> str:
        sign = "flat" if self.is_flat else f"GREW by more than {self.allowed:.1f}"
        return f"{self.name:<28} {self.before:9.1f} → {self.after:9.1f} {self.unit:<4} {sign}"


def trend(name: str, unit: str, values: Sequence[float], *, share: float, least: float) -> Trend | None:
    """Return the trend, or None if there are too few measurements.

    The values may grow by `share` of their first third, or by `least` if that is more.
    """
    settled = values[int(len(values) * WARM_UP) :]
    if len(settled) < ENOUGH:
        return None
    third = len(settled) // 3
    before, after = median(settled[:third]), median(settled[-third:])
    return Trend(name, unit, before, after, max(share * before, least))
