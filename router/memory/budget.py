"""How much memory workers may take together, and what each model needs of it: `--models-memory`, the system, the files.

Asked by `lifecycle` before it decides; `placement` then decides on plain numbers. `UNLIMITED` reads nothing at all.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.worker_reports import MemoryUsage
from llama_corral.presets.options.values import AUTO_LIMIT, NO_LIMIT

from ..placement.device_split import Need, distribute
from ..placement.memory_amounts import Limit, Space, total
from . import host
from .devices import Devices, SystemDevice, read_devices, unknown_device
from .estimate import PROCESS_BYTES
from .requirements import MemoryRequirements

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings
    from llama_corral.presets.sources import Preset


class WorkerMemory(NamedTuple):
    """What a worker takes, or is about to."""

    pid: int | None
    space: Space
    is_loaded: bool = True
    """Its model is on its devices; else what they have free may still have that in it."""


class MemoryBudget:
    """`host`, and for each of the devices `budgets`: bytes, or AUTO_LIMIT: what is free, less `margin`, or NO_LIMIT."""

    def __init__(
        self,
        needs: MemoryRequirements,
        devices: Devices,
        *,
        host: int,
        budgets: Mapping[str, int],
        margin: int = 0,
        read_host: Callable[[], host.HostMemory] = host.read_host_memory,
        read_devices: Callable[[], Sequence[SystemDevice]] = tuple,
        private_bytes: Callable[[int], int] = host.private_bytes,
    ) -> None:
        self._requirements = needs
        self._devices = devices
        self._host = host
        self._budgets = {name: budget for name, budget in budgets.items() if budget != NO_LIMIT}
        self._margin = margin
        self._read_host_memory = read_host
        self._read_devices = read_devices
        self._private_bytes = private_bytes

    def private_bytes(self, pid: int | None) -> int:
        """What of a worker's memory nobody shares."""
        return 0 if pid is None or self._host == NO_LIMIT else self._private_bytes(pid)

    async def expected(self, preset: Preset) -> Need | None:
        """None: nobody knows before it is loaded."""
        return await asyncio.to_thread(self._requirements.expected, preset)

    @property
    def empty_devices(self) -> Limit:
        """The devices with nothing on them."""
        return Limit(None, self._devices.totals)

    def usage_of(self, reported: MemoryUsage) -> Space:
        """What a worker takes: what llama.cpp allocated, by our names of the devices, and what it has beside that."""
        parts = reported.devices or ()
        if reported.devices is not None:
            self._devices.register_reported(parts)
        on_devices = (Space(devices={self._devices.name_of(part.name): part.size}) for part in parts)
        return Space(reported.host + PROCESS_BYTES) + total(on_devices)

    def record_load(self, preset: Preset, need: Need, taken: Space, estimated: Space) -> Need:
        return self._requirements.record_load(preset, need, taken, estimated)

    @property
    def reads_devices(self) -> bool:
        return AUTO_LIMIT in self._budgets.values()

    def limit(self, workers: Sequence[WorkerMemory], *, is_settling: bool = False) -> Limit:
        """What all workers may have, those that run included.

        `is_settling`: one has just gone. Then a budget holds only as far as the device shows that it has its memory
        back.
        """
        host = self._host if self._host > 0 else None
        if self._host == AUTO_LIMIT:
            private = sum(self.private_bytes(worker.pid) for worker in workers)
            host = max(0, self._read_host_memory().free + private - self._margin)
        if not is_settling and not self.reads_devices:
            return Limit(host, self._budgets)
        ours = total(worker.space for worker in workers if worker.is_loaded).devices
        present = {device.name: device.free + ours.get(device.name, 0) for device in self._read_devices()}
        return Limit(host, dict(self._counted(present)))

    def _counted(self, present: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """`present`: bytes of each device that are free or a worker's; one that tells nothing any more is missing."""
        for name, budget in self._budgets.items():
            if budget != AUTO_LIMIT:
                yield name, min(budget, present.get(name, budget))
            elif name in present:
                yield name, max(0, present[name] - self._margin)


def budgets_of(limits: Sequence[int], devices: Sequence[SystemDevice]) -> dict[str, int]:
    """Of `--models-device-memory`, by device. Raises ConfigError."""
    totals = {device.name: device.total for device in devices}
    if len(limits) == 1 and (limits[0] <= 0 or len(totals) > 1):
        if limits[0] <= 0:
            return dict.fromkeys(totals, limits[0])
        return dict(distribute(limits[0], tuple(totals), tuple(totals.values())).devices)
    if len(limits) > len(devices):
        raise ConfigError(f"--models-device-memory: {len(limits)} values, but there are {len(devices)} devices")
    given = [*limits, *[AUTO_LIMIT] * len(devices)]
    return dict(zip(totals, given, strict=False))


def memory_budget_of(settings: Settings, environ: Mapping[str, str]) -> MemoryBudget:
    """`environ`: what workers inherit. Raises ConfigError."""
    read = functools.partial(read_devices, environ)
    limits = settings.models_device_memory
    readable = read()
    counted = readable or tuple(
        SystemDevice(unknown_device(i), size, size) for i, size in enumerate(limits) if size > 0
    )
    devices = Devices(counted)
    return MemoryBudget(
        MemoryRequirements(environ, devices if readable else Devices()),
        devices,
        host=settings.models_memory,
        budgets=budgets_of(limits, counted),
        margin=settings.models_memory_margin << 20,
        read_devices=read,
    )


class _UnlimitedBudget(MemoryBudget):
    """For who wants no counting: reads nothing, expects nothing."""

    def __init__(self) -> None:
        super().__init__(MemoryRequirements({}, Devices()), Devices(), host=NO_LIMIT, budgets={})

    async def expected(self, preset: Preset) -> Need | None:
        return None


UNLIMITED: MemoryBudget = _UnlimitedBudget()
