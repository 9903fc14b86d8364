"""How much memory there is for workers, read from the system: the machine's own, and that of the devices together.

Called by `lifecycle` when it is about to decide; reads files of the kernel and the driver's library, loads nothing on a
device. Knows no model. Devices whose memory is the machine's (Apple) are not counted apart.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger("corral.router")

CGROUP = Path("/sys/fs/cgroup")
DRM = Path("/sys/class/drm")
PROC = Path("/proc")


@dataclass(frozen=True)
class Reading:
    """Bytes of one memory."""

    total: int
    free: int
    """What can still be taken without driving anything else out; caches that the kernel gives up count as free."""


def read_host(cgroup: Path = CGROUP) -> Reading:
    """The machine's memory, or what a container may have of it."""
    machine = psutil.virtual_memory()
    limit = _number(cgroup / "memory.max")
    if limit is None or limit >= machine.total:
        return Reading(machine.total, machine.available)
    used = (_number(cgroup / "memory.current") or 0) - _inactive_file(cgroup)
    return Reading(limit, max(0, min(limit - used, machine.available)))


def read_devices(drm: Path = DRM) -> Reading | None:
    """All devices together; None: there are none whose memory can be read."""
    readings = [*_nvidia(), *_amd(drm)]
    if not readings:
        return None
    return Reading(sum(reading.total for reading in readings), sum(reading.free for reading in readings))


def private_bytes(pid: int, proc: Path = PROC) -> int:
    """What of the memory of a process and its children is nobody else's and no file's, swapped out or not."""
    return _private_bytes(pid, proc) + sum(private_bytes(child, proc) for child in _children(pid, proc))


def _children(pid: int, proc: Path) -> list[int]:
    """Of its main thread. Our workers have none; other programs may be a family."""
    try:
        return [int(child) for child in (proc / f"{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _private_bytes(pid: int, proc: Path) -> int:
    """0 once it is gone."""
    try:
        status = (proc / str(pid) / "status").read_text()
    except OSError:
        return _resident_bytes(pid)
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "VmSwap") if name in fields)


def _resident_bytes(pid: int) -> int:
    """Where there is no /proc."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return max(0, int(memory.rss) - int(getattr(memory, "shared", 0)))


def _number(path: Path) -> int | None:
    """None for `max`, and where there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _inactive_file(cgroup: Path) -> int:
    try:
        lines = (cgroup / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def _amd(drm: Path) -> Iterable[Reading]:
    for directory in sorted(drm.glob("card[0-9]*/device")):
        total, used = _number(directory / "mem_info_vram_total"), _number(directory / "mem_info_vram_used")
        if total is not None and used is not None:
            yield Reading(total, max(0, total - used))


def _nvidia() -> list[Reading]:
    library = _nvml()
    if library is None:
        return []
    try:
        handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        memories = [library.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
    except library.NVMLError as error:
        log.warning("the memory of the NVIDIA devices cannot be read: %s", error)
        return []
    return [Reading(int(memory.total), int(memory.free)) for memory in memories]


@functools.cache
def _nvml() -> Any:
    """The driver's library; None on machines without."""
    if not Path("/proc/driver/nvidia/version").exists():
        return None
    library = importlib.import_module("pynvml")
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        log.warning("the NVIDIA driver does not answer: %s", error)
        return None
    return library
