"""Computes statistics for a noisy machine: medians over rounds, ratios of rounds of the same minute, their range."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One measured value. `limit` is the goal for the ratio ours/reference; `ceiling` the largest allowed own value."""

    key: str
    name: str
    unit: str
    better: Literal["higher", "lower"]
    limit: float | None = None
    ceiling: float | None = None

    @property
    def goal(self) -> str:
        """The goal as text; empty if the row is only informative."""
        if self.limit is not None:
            return f"{'≥' if self.better == 'higher' else '≤'} {self.limit:g}×"
        return "" if self.ceiling is None else f"≤ {self.ceiling:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Verdict:
    """A row with the values of every round of both sides. `ok` is True if the goal is reached, None without a goal."""

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
        """The ratio of both sides' best rounds: other load on the machine can only make rounds slower."""
        if not self.ratios:
            return None
        higher = self.row.better == "higher"
        mine, theirs = (max(rounds) if higher else min(rounds) for rounds in (self.ours, self.reference))
        return mine / theirs if theirs else None


def judge(row: Row, ours: Sequence[float], reference: Sequence[float]) -> Verdict:
    """Compare paired rounds, so that other load affects both sides; the median of the ratios decides."""
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
    """Return the nearest-rank percentile of values in ascending order. Raises ValueError if there are none."""
    if not ordered:
        raise ValueError("no values")
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def gaps(times: Sequence[float], begin: float = -math.inf, end: float = math.inf) -> list[float]:
    """Return the differences between neighbouring times, for the intervals that overlap `begin` … `end`."""
    return [later - earlier for earlier, later in itertools.pairwise(times) if later >= begin and earlier <= end]
