"""Determines the default number of CPU threads."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_CPUS = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Return llama-server's default: one thread per physical core, at most the CPUs that this process may use."""
    siblings = {path.read_text() for path in _CPUS.glob("cpu[0-9]*/topology/thread_siblings")}
    cores = len(siblings) or psutil.cpu_count(logical=False) or os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(cores, usable))
