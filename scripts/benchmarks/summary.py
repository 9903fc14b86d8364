"""Statistics of a noisy machine: medians over rounds, ratios of rounds of the same minute, and their spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One thing measured. `limit` is the ratio ours/reference to reach; `ceiling` an absolute bound on ours."""

    key: str
    name: str
    unit: str
    better: Literal["higher", "lower"]
    limit: float | None = None
    ceiling: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words, empty when the row is only informative."""
        if self.limit is not None:
            return f"{'≥' if self.better == 'higher' else '≤'} {self.limit:g}×"
        return "" if self.ceiling is None else f"≤ {self.ceiling:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Verdict:
    """A row with what was measured: every round of both sides, and whether the goal is reached (None: no goal)."""

    row: Row
    ours: tuple[float, ...]
    reference: tuple[float, ...]
    ratios: tuple[float, ...]
    ok: bool | None

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def best(self) -> float | None:
        """The ratio of each side's best round: what is left when neighbours only ever slow things down."""
        if not self.ratios:
            return None
        higher = self.row.better == "higher"
        mine, theirs = (max(rounds) if higher else min(rounds) for rounds in (self.ours, self.reference))
        return mine / theirs if theirs else None


def judge(row: Row, ours: Sequence[float], reference: Sequence[float]) -> Verdict:
    """Pair the rounds, so that a neighbour's busy minute falls on both sides; decide by the median of the ratios."""
    pairs = zip(ours, reference, strict=False)
    ratios = tuple(mine / theirs for mine, theirs in pairs if theirs and math.isfinite(mine / theirs))
    ok: bool | None = None
    if row.limit is not None and ratios:
        ok = reaches(median(ratios), row.limit, row.better)
    if row.ceiling is not None and ours:
        ok = median(ours) <= row.ceiling
    return Verdict(row, tuple(ours), tuple(reference), ratios, ok)


def reaches(ratio: float, limit: float, better: Literal["higher", "lower"]) -> bool:
    return ratio >= limit if better == "higher" else ratio <= limit


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in ascending order."""
    if not ordered:
        raise ValueError("no values")
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def gaps(times: Sequence[float], begin: float = -math.inf, end: float = math.inf) -> list[float]:
    """Differences between neighbours, of those that touch the time from `begin` to `end`."""
    return [later - earlier for earlier, later in itertools.pairwise(times) if later >= begin and earlier <= end]
