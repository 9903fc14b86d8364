"""How much memory workers may take together, and what each model needs of it: `--models-memory`, the system, the files.

Asked by `lifecycle` before it decides; `placement` then decides on plain numbers. `UNLIMITED` reads nothing at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..presets.values import AUTO_LIMIT, NO_LIMIT
from . import memory
from .needs import Needs
from .space import Limit, Space, total

if TYPE_CHECKING:
    from ..presets.settings import Settings
    from ..presets.sources import Preset


class Room:
    """`host` and `device`: bytes, or AUTO_LIMIT: what is free, less `margin` bytes, or NO_LIMIT."""

    def __init__(
        self,
        needs: Needs,
        *,
        host: int,
        device: int,
        margin: int = 0,
        read_host: Callable[[], memory.Reading] = memory.read_host,
        read_devices: Callable[[], memory.Reading | None] = memory.read_devices,
        private_bytes: Callable[[int], int] = memory.private_bytes,
    ) -> None:
        self._needs = needs
        self._host = host
        self._device = device
        self._margin = margin
        self._read_host = read_host
        self._read_devices = read_devices
        self._private_bytes = private_bytes

    def private_bytes(self, pid: int | None) -> int:
        """What of a worker's memory nobody shares."""
        return 0 if pid is None or self._host == NO_LIMIT else self._private_bytes(pid)

    async def expected(self, preset: Preset) -> Space | None:
        """None: nobody knows before it is loaded."""
        return await asyncio.to_thread(self._needs.expected, preset)

    def learn(self, preset: Preset, taken: Space) -> Space:
        """What llama.cpp allocated for it; returns what it takes with all that belongs to it."""
        return self._needs.learn(preset, taken)

    def limit(self, workers: Sequence[tuple[int | None, Space]]) -> Limit:
        """What all workers may have, those that run included: their process ids, and what each takes."""
        host = _fixed(self._host)
        if self._host == AUTO_LIMIT:
            private = sum(self.private_bytes(pid) for pid, _ in workers)
            host = max(0, self._read_host().free + private - self._margin)
        device = _fixed(self._device)
        if self._device == AUTO_LIMIT and (reading := self._read_devices()) is not None:
            device = max(0, reading.free + total(space for _, space in workers).device - self._margin)
        return Limit(host, device)


def _fixed(limit: int) -> int | None:
    return limit if limit > 0 else None


def room_of(settings: Settings, environ: Mapping[str, str]) -> Room:
    """`environ`: what workers inherit."""
    return Room(
        Needs(environ, has_devices=memory.read_devices() is not None),
        host=settings.models_memory,
        device=settings.models_device_memory,
        margin=settings.models_memory_margin << 20,
    )


class _Unlimited(Room):
    """For who wants no counting: reads nothing, expects nothing."""

    def __init__(self) -> None:
        super().__init__(Needs({}, has_devices=False), host=NO_LIMIT, device=NO_LIMIT)

    async def expected(self, preset: Preset) -> Space | None:
        return None


UNLIMITED: Room = _Unlimited()
