"""Measures the memory of the last loaded model from llama.cpp's log: its C interface does not report it.

`llama` passes it the lines of the log, `runner` reads the sums. Process-wide, like that log: a process has one model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ALLOCATED = re.compile(r"(\S+) +(?:model|KV|RS|output|compute) buffer size += +([\d.]+) MiB")


class Allocations:
    """The sums of the buffers' sizes, by buffer type."""

    def __init__(self) -> None:
        self._bytes: dict[str, float] = {}

    def clear(self) -> None:
        self._bytes.clear()

    def add(self, buffer_type: str, n_bytes: int) -> None:
        """Add an allocation that is not logged in this form."""
        self._bytes[buffer_type] = self._bytes.get(buffer_type, 0.0) + n_bytes

    def note(self, line: str) -> None:
        if found := _ALLOCATED.search(line):
            self._bytes[found[1]] = self._bytes.get(found[1], 0.0) + float(found[2]) * (1 << 20)

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory, pinned or not. A mapped file counts with its whole size."""
        return int(sum(size for name, size in self._bytes.items() if _is_host(name)))

    def device_bytes(self, known: Sequence[str], used: Sequence[str]) -> dict[str, int]:
        """Return the bytes by device. `known`: names of all devices; `used`: of those that the model was loaded to."""
        found: dict[str, float] = {}
        for buffer_type, size in self._bytes.items():
            if not _is_host(buffer_type):
                for device, share in _shares(buffer_type, known, used).items():
                    found[device] = found.get(device, 0.0) + size * share
        return {device: int(size) for device, size in found.items()}


def _shares(buffer_type: str, known: Sequence[str], used: Sequence[str]) -> dict[str, float]:
    """Return the devices of a buffer of this type, and the fraction of the logged size on each of them."""
    if buffer_type.startswith("Meta("):  # split mode tensor: the log has the largest part's size and no devices
        return dict.fromkeys(used, 1.0)
    if device := max((name for name in known if buffer_type.startswith(name)), key=len, default=""):
        return {device: 1.0}  # for example MTL0_Mapped
    of_backend = [name for name in known if name.rstrip("0123456789") == buffer_type.removesuffix("_Split")]
    return dict.fromkeys(of_backend, 1.0 / len(of_backend)) if of_backend else {buffer_type: 1.0}


def _is_host(buffer_type: str) -> bool:
    return buffer_type.startswith("CPU") or buffer_type.endswith(("_Host", "BLAS"))


allocations = Allocations()
