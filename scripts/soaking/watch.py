"""The verifier: compares the processes with `/models` repeatedly, and measures memory, descriptors and threads."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from .ledger import Ledger
from .target import MODELS_MAX, Target
from .trend import Trend, trend

EVERY_S = 0.5
PATIENCE = 10
"""A difference is a violation after this many looks in a row: processes start and exit between two readings."""
RUNNING = ("loading", "loaded", "sleeping")


@dataclass
class Look:
    """The measurements of one moment."""

    router_mb: float
    router_fds: int
    router_threads: int
    zygote_mb: float
    zygote_fds: int
    workers: int
    worker_mb: float
    """Memory of the largest worker."""


@dataclass
class Verifier:
    target: Target
    ledger: Ledger
    looks: list[Look] = field(default_factory=list)
    most_workers: int = 0
    _in_a_row: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    async def watch(self, session: aiohttp.ClientSession, end: float) -> None:
        while time.monotonic() < end:
            await self.look(session)
            await asyncio.sleep(EVERY_S)

    async def look(self, session: aiohttp.ClientSession) -> None:
        async with session.get("/models", timeout=aiohttp.ClientTimeout(20)) as response:
            shown = (await response.json())["data"]
        workers, zombies = await asyncio.to_thread(self._workers)
        self.compare([entry["id"] for entry in shown if entry["status"]["value"] in RUNNING], workers, zombies)

    def compare(self, running: list[str], workers: int, zombies: int) -> None:
        """Compare the models that run according to `/models` with the number of worker processes."""
        self.most_workers = max(self.most_workers, workers)
        if workers > MODELS_MAX:
            self.ledger.violate(f"{workers} workers run, {MODELS_MAX} are allowed")
        self._lasting(len(running) != workers, f"/models lists {running}, but {workers} workers exist")
        self._lasting(zombies > 0, "a zombie is not reaped")

    def _lasting(self, is_wrong: bool, story: str) -> None:
        key = story.partition(" ")[0]
        self._in_a_row[key] = self._in_a_row[key] + 1 if is_wrong else 0
        if self._in_a_row[key] == PATIENCE:
            self.ledger.violate(story)

    def _workers(self) -> tuple[int, int]:
        """Record one look. Return the number of live workers and the number of zombies."""
        alive = zombies = 0
        most = 0.0
        for process in self.target.workers():
            if _is_zombie(process):
                zombies += 1
            else:
                alive += 1
                most = max(most, private_mb(process.pid))
        router, zygote = self.target.router(), self.target.zygote()
        with suppress(psutil.Error):
            self.looks.append(
                Look(
                    private_mb(router.pid),
                    router.num_fds(),
                    router.num_threads(),
                    private_mb(zygote.pid) if zygote else 0.0,
                    zygote.num_fds() if zygote else 0,
                    alive,
                    most,
                )
            )
        return alive, zombies

    def trends(self) -> list[Trend]:
        """Return the trends. A worker's memory may grow more, because which models run in each third is random."""
        looks = self.looks
        several = [
            trend("memory of the router", "MB", [look.router_mb for look in looks], share=0.1, least=4),
            trend("memory of the zygote", "MB", [look.zygote_mb for look in looks], share=0.1, least=4),
            trend("memory, largest worker", "MB", [k.worker_mb for k in looks if k.workers], share=0.4, least=16),
            trend("descriptors of the router", "", [look.router_fds for look in looks], share=0.2, least=12),
            trend("descriptors of the zygote", "", [look.zygote_fds for look in looks], share=0, least=8),
            trend("threads of the router", "", [look.router_threads for look in looks], share=0, least=4),
        ]
        return [one for one in several if one is not None]


def private_mb(pid: int) -> float:
    """Return the process's private anonymous memory in MB, including swapped pages, so that no leak is hidden."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap") if name in fields) / 1024


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
