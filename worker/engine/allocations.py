"""How much memory the model that was loaded last takes: callers in C learn it from llama.cpp's log alone.

`llama` feeds it the lines of the log, `runner` reads the sums. Process-wide, as that log is: a process has one model.
"""

from __future__ import annotations

import re

_ALLOCATED = re.compile(r"(\S+) +(?:model|KV|RS|output|compute) buffer size += +([\d.]+) MiB")


class Allocations:
    """Sums of the buffers' sizes, by buffer type."""

    def __init__(self) -> None:
        self._bytes: dict[str, float] = {}

    def clear(self) -> None:
        self._bytes.clear()

    def add(self, buffer_type: str, n_bytes: int) -> None:
        """What the log does not say in this form."""
        self._bytes[buffer_type] = self._bytes.get(buffer_type, 0.0) + n_bytes

    def note(self, line: str) -> None:
        if found := _ALLOCATED.search(line):
            self._bytes[found[1]] = self._bytes.get(found[1], 0.0) + float(found[2]) * (1 << 20)

    @property
    def host_bytes(self) -> int:
        """In the machine's memory, pinned or not; a mapped file counts as a whole."""
        return int(sum(size for name, size in self._bytes.items() if _is_host(name)))

    @property
    def device_bytes(self) -> int:
        return int(sum(size for name, size in self._bytes.items() if not _is_host(name)))


def _is_host(buffer_type: str) -> bool:
    return buffer_type.startswith("CPU") or buffer_type.endswith(("_Host", "BLAS"))


allocations = Allocations()
