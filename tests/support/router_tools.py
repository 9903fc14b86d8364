"""Shared by the router's tests: presets, fake workers as real processes, a recorder of their callbacks, and waiting."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil
from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.presets.layer import ConfigValue
from llama_corral.presets.preset import Preset
from llama_corral.router.process.launcher import Callbacks, Launcher
from llama_corral.router.process.spawn import SpawnLauncher
from llama_corral.router.process.zygote import ZYGOTE_COMMAND, ZygoteLauncher

TESTS = Path(__file__).resolve().parent
FAKE_COMMAND = (sys.executable, str(TESTS / "fake_worker.py"))
PATIENCE = 30.0
"""Seconds after which a condition that is still false fails its test."""

Kind = Literal["spawn", "zygote"]
KINDS: tuple[Kind, ...] = ("spawn", "zygote") if sys.platform.startswith("linux") else ("spawn",)


def python_path(*directories: Path) -> str:
    """Return a value for PYTHONPATH: these directories, then those that the tests themselves were started with."""
    return os.pathsep.join([*map(str, directories), *filter(None, [os.environ.get("PYTHONPATH")])])


def fake_launcher(kind: Kind, **environ: str) -> Launcher:
    """Return a launcher that runs tests/support/fake_worker.py."""
    given = {**os.environ, "PYTHONPATH": python_path(TESTS), **environ}
    if kind == "spawn":
        return SpawnLauncher(given, FAKE_COMMAND)
    zygote = (*ZYGOTE_COMMAND, "--program", "fake_worker:run")
    return ZygoteLauncher(given, zygote, FAKE_COMMAND)


def preset(name: str, model: str = "", **given: Any) -> Preset:
    """Return a preset as the sources make it; `model` contains the words for the fake worker."""
    options = {field: ConfigValue(str(value), "a test") for field, value in given.pop("options", {}).items()}
    layer = {"model": ConfigValue(model, "a test"), **options}
    defaults: dict[str, Any] = {"aliases": (), "tags": (), "source": "preset", "load_on_startup": False}
    defaults |= {"stop_timeout": 10.0, "hidden": False}
    return Preset(name=name, layer=layer, **{**defaults, **given})


def presets(*entries: Preset) -> dict[str, Preset]:
    return {entry.name: entry for entry in entries}


class Recorder:
    """Records the callbacks of one worker."""

    def __init__(self) -> None:
        self.reports: list[WorkerReport] = []
        self.exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self.callbacks = Callbacks(self._on_report, self._on_exit)

    def _on_report(self, report: WorkerReport) -> None:
        assert not self.exit.done(), "a report came after the exit"
        self.reports.append(report)
        self._changed.set()

    def _on_exit(self, code: int) -> None:
        self.exit.set_result(code)
        self._changed.set()

    async def state(self, wanted: str) -> WorkerReport:
        async with asyncio.timeout(PATIENCE):
            while True:
                self._changed.clear()
                found = [report for report in self.reports if report.state == wanted]
                if found:
                    return found[-1]
                assert not self.exit.done(), f"it exited with {self.exit.result()} instead"
                await self._changed.wait()

    async def exited(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.exit


async def until(condition: Callable[[], object]) -> None:
    """Poll a condition that sends no notification, such as the state of other processes."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
