"""Explain why a worker ended, from its exit code, its log and the kernel's out-of-memory counter. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

QUOTED_LINES = 3
"""Log lines quoted when a request is refused: enough for the cause, short enough for a client's error box."""
VMSTAT = Path("/proc/vmstat")

_NO_MEMORY = re.compile(r"out of memory|cannot allocate memory|failed to allocate|bad_alloc|MemoryError", re.IGNORECASE)
_ASSERTION = re.compile(r"GGML_ASSERT\(|GGML_ABORT|fatal error|Assertion .* failed|CUDA error")
_SIGNALS = {
    "SIGKILL": "it was killed by someone, or by the kernel because memory ran out",
    "SIGABRT": "llama.cpp aborted",
    "SIGSEGV": "it crashed",
    "SIGBUS": "it crashed: a memory-mapped file became shorter, or its disk failed",
    "SIGILL": "llama.cpp was built for another processor, or by a compiler that breaks its AMX code",
    "SIGFPE": "it crashed",
}


def kernel_oom_kills() -> int:
    """Return how many processes the kernel has killed so far because memory ran out; 0 if it does not report this."""
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


NO_MEMORY = "out of memory"


def ran_out_of_memory(returncode: int, last_output: Sequence[str], kills_meanwhile: int = 0) -> bool:
    """Return True if more memory might have prevented the exit.

    `last_output`: the end of the worker's log, and the failure that it reported.
    """
    return (
        any(_NO_MEMORY.search(line) for line in last_output)
        or _reason(returncode, last_output, kills_meanwhile) == NO_MEMORY
    )


def exit_cause(returncode: int, last_lines: Sequence[str], kills_meanwhile: int = 0) -> str:
    """Return what happened, preceded by the likely reason if one is known.

    `returncode`: negative for a signal. `kills_meanwhile`: by how much `kernel_oom_kills` grew while the worker ran.
    """
    reason = _reason(returncode, last_lines, kills_meanwhile)
    return (
        f"{reason}: {exit_description(returncode, last_lines)}" if reason else exit_description(returncode, last_lines)
    )


def _reason(returncode: int, last_lines: Sequence[str], kills_meanwhile: int) -> str:
    if returncode == -signal.SIGKILL and kills_meanwhile > 0:
        return NO_MEMORY
    for line in reversed(last_lines):
        if _NO_MEMORY.search(line):
            return NO_MEMORY
        if _ASSERTION.search(line) and returncode < 0:
            return line.strip()
    return _SIGNALS.get(_name(-returncode), "") if returncode < 0 else ""


def exit_description(returncode: int, last_lines: Sequence[str]) -> str:
    """Return what happened, without a guess at the reason."""
    if returncode >= 0:
        text = f"its process exited with code {returncode}"
    else:
        text = f"its process was ended by {_name(-returncode) or f'signal {-returncode}'}"
    quoted = " | ".join(line.strip() for line in last_lines[-QUOTED_LINES:])
    return f"{text}; its last lines: {quoted}" if quoted else text


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""
