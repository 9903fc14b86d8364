"""Measures the memory and processor time of a gateway's processes, and ends a gateway that takes too much."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .stage import Stage

MB = 1 << 20
EVERY_S = 0.05
MOST_MB = 3000
"""A gateway whose processes take more than this in addition is killed, to protect the machine."""


@dataclass
class Memory:
    """Peaks above the start, in MB. Processes that start later count from their first measurement."""

    stage: Stage
    before: dict[int, float] = field(default_factory=dict)
    peaks: dict[int, float] = field(default_factory=dict)
    lasting: set[int] = field(default_factory=set)
    """The router, its zygote and the workers at the start."""
    most_processes: int = 0
    was_killed: bool = False

    def start(self) -> None:
        for process in self.stage.family():
            _forget_peak(process.pid)
            self.before[process.pid] = _mb(process.pid, "VmRSS")
        self.lasting = set(self.before)

    async def watch(self) -> None:
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(EVERY_S)

    def look(self) -> None:
        family = self.stage.family()
        self.most_processes = max(self.most_processes, len(family))
        for process in family:
            pid = process.pid
            self.before.setdefault(pid, _mb(pid, "VmRSS"))
            self.peaks[pid] = max(self.peaks.get(pid, 0.0), _mb(pid, "VmHWM") - self.before[pid])
        if sum(max(0.0, _mb(process.pid, "VmRSS") - self.before[process.pid]) for process in family) > MOST_MB:
            self.was_killed = True
            for process in family:
                with suppress(psutil.Error):
                    process.kill()

    @property
    def router_mb(self) -> float:
        return self.peaks.get(self.stage.process.pid, 0.0)

    @property
    def worker_mb(self) -> float:
        """The peak of the process that took most, without the router."""
        return max((peak for pid, peak in self.peaks.items() if pid != self.stage.process.pid), default=0.0)

    def ended(self) -> list[int]:
        """Return the processes of the start that do not run any more."""
        running = {process.pid for process in self.stage.family() if _runs(process)}
        return sorted(self.lasting - running)


def processor_seconds(stage: Stage) -> float:
    total = 0.0
    for process in stage.family():
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _forget_peak(pid: int) -> None:
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _mb(pid: int, name: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) / 1024
    return 0.0
