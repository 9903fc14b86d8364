"""Writes the measurements as a Markdown table, as JSON and as a plot of ratios."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import psutil

from .summary import Verdict

MARKS = {True: "✓", False: "✗", None: ""}
BAR_COLOURS = {True: "#2f855a", False: "#c53030", None: "#718096"}


def number(value: float) -> str:
    """Format with three significant digits; large values with a comma for thousands."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def spread(values: Sequence[float]) -> str:
    """Return the median and, if the rounds differ, their range."""
    if not values:
        return "–"
    low, middle, high = number(min(values)), number(median(values)), number(max(values))
    return middle if low == high else f"{middle} ({low}–{high})"


def table(verdicts: Sequence[Verdict], reference: str | None) -> str:
    """Return a Markdown table with one row per measurement: medians with their range over the rounds."""
    if reference is None:
        lines = ["| | ours |", "|---|---|"]
        return "\n".join(lines + [f"| {v.row.name}{_unit(v)} | {spread(v.ours)} |" for v in verdicts])
    lines = [f"| | ours | {reference} | ratio | best rounds | goal | |", "|---|---|---|---|---|---|---|"]
    for v in verdicts:
        best = "" if v.best is None else f"{v.best:.2f}"
        sides = (spread(v.ours), spread(v.reference))
        cells = (v.row.name + _unit(v), *sides, ratio_text(v), best, v.row.goal, MARKS[v.ok])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio_text(verdict: Verdict) -> str:
    if verdict.ratio is None:
        return ""
    return f"**{verdict.ratio:.2f}** ({min(verdict.ratios):.2f}–{max(verdict.ratios):.2f})"


def _unit(verdict: Verdict) -> str:
    return f", {verdict.row.unit}" if verdict.row.unit else ""


def machine() -> dict[str, str | int]:
    """Return the properties of this machine, for bench.json."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count() or 0,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def write_json(path: Path, verdicts: Sequence[Verdict], facts: Mapping[str, object]) -> None:
    rows = [asdict(v) | {"ratio": v.ratio, "best": v.best, "goal": v.row.goal} for v in verdicts]
    path.write_text(json.dumps({**facts, "machine": machine(), "rows": rows}, indent=2, ensure_ascii=False) + "\n")


def write_plot(path: Path, verdicts: Sequence[Verdict], reference: str) -> None:
    """Draw one bar per ratio on a logarithmic axis; right is better for us in every unit. Ticks mark the goals."""
    import matplotlib  # imported late: the table needs no plot library

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [v for v in verdicts if v.ratio is not None and v.ratio > 0 and min(v.ratios) > 0][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(shown) + 1.2), layout="constrained")
    for place, v in enumerate(shown):
        times = sorted(ratio if v.row.better == "higher" else 1 / ratio for ratio in v.ratios)
        middle = median(times)
        axes.barh(place, middle - 1, left=1, height=0.6, color=BAR_COLOURS[v.ok])
        axes.plot([times[0], times[-1]], [place, place], color="black", linewidth=1)
        if v.row.limit is not None:
            goal = v.row.limit if v.row.better == "higher" else 1 / v.row.limit
            axes.plot([goal, goal], [place - 0.42, place + 0.42], color="black", linewidth=2)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.25, 0.5, 0.7, 1, 1.5, 2, 4, 8, 16) if _inside(tick, axes.get_xlim())]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(shown)), [v.row.name for v in shown])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_title(f"times better than {reference} (line: range of rounds, tick: goal)", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _inside(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
