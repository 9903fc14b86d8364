"""Read how much of the machine's memory workers may use, and how much a process uses, from the operating system.

`budget` uses it. It knows no models and no devices.
"""

from __future__ import annotations

from pathlib import Path

import psutil
from msgspec import Struct

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")


class HostMemory(Struct, frozen=True):
    """The memory of the machine or container, in bytes."""

    total: int
    free: int
    """Bytes that can be used without swapping. Caches that the kernel can drop count as free."""


def read_host_memory(cgroup: Path = CGROUP) -> HostMemory:
    """Return the machine's memory, or the part that the limit of our container allows."""
    machine = psutil.virtual_memory()
    limit = _number(cgroup / "memory.max")
    if limit is None or limit >= machine.total:
        return HostMemory(machine.total, machine.available)
    used = (_number(cgroup / "memory.current") or 0) - _inactive_file(cgroup)
    return HostMemory(limit, max(0, min(limit - used, machine.available)))


def private_bytes(pid: int, proc: Path = PROC) -> int:
    """Return the bytes of a process and its children that are not shared and not file-backed, swapped or not."""
    return _private_bytes(pid, proc) + sum(private_bytes(child, proc) for child in _children(pid, proc))


def _children(pid: int, proc: Path) -> list[int]:
    """Return the child processes of its main thread. Our workers have none; external programs may have some."""
    try:
        return [int(child) for child in (proc / f"{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _private_bytes(pid: int, proc: Path) -> int:
    """Return the private bytes of one process, or 0 if it has ended."""
    try:
        status = (proc / str(pid) / "status").read_text()
    except OSError:
        return _resident_bytes(pid)
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "VmSwap") if name in fields)


def _resident_bytes(pid: int) -> int:
    """Return the resident bytes without shared ones, for systems without /proc."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return max(0, int(memory.rss) - int(getattr(memory, "shared", 0)))


def _number(path: Path) -> int | None:
    """Return the number in a file, or None if it contains `max` or does not exist."""
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
