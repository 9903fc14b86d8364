"""Determine how much memory workers may use together, and how much each model needs.

The sources are `--models-memory` and `--models-device-memory`, the operating system and the model files. `lifecycle`
calls it before each decision; `placement` then decides with plain numbers. `UNLIMITED` reads nothing.
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
    from llama_corral.presets.preset import Preset


class WorkerMemory(NamedTuple):
    """The memory that a worker uses, or will use when it has loaded its model."""

    pid: int | None
    space: Space
    is_loaded: bool = True
    """True if its model is loaded. Else the devices may still report that memory as free."""


class MemoryBudget:
    """The memory that all workers together may use.

    `host`, and each device's value in `budgets`: bytes, AUTO_LIMIT (what is free, minus `margin`) or NO_LIMIT.
    """

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
        """Return the bytes of a worker's host memory that no other process shares; 0 if host memory is not limited."""
        return 0 if pid is None or self._host == NO_LIMIT else self._private_bytes(pid)

    async def expected(self, preset: Preset) -> Need | None:
        """Return what the preset's model needs, or None if that is unknown until it is loaded."""
        return await asyncio.to_thread(self._requirements.expected, preset)

    @property
    def empty_devices(self) -> Limit:
        """The full size of each device, as if it were empty."""
        return Limit(None, self._devices.totals)

    def usage_of(self, reported: MemoryUsage) -> Space:
        """Return a worker's memory: llama.cpp's allocations, by our device names, plus the rest of its process."""
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
        """Return what all workers together may use, including those that run.

        `is_settling`: True if a worker has just ended. Then a device's budget counts only as far as the device reports
        that memory as free.
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
        """Yield name and limit of each device.

        `present`: bytes of each device that are free or used by our workers. A device that cannot be read is missing.
        """
        for name, budget in self._budgets.items():
            if budget != AUTO_LIMIT:
                yield name, min(budget, present.get(name, budget))
            elif name in present:
                yield name, max(0, present[name] - self._margin)


def budgets_of(limits: Sequence[int], devices: Sequence[SystemDevice]) -> dict[str, int]:
    """Return the values of `--models-device-memory` by device name. Raises ConfigError."""
    totals = {device.name: device.total for device in devices}
    if len(limits) == 1 and (limits[0] <= 0 or len(totals) > 1):
        if limits[0] <= 0:
            return dict.fromkeys(totals, limits[0])
        return dict(distribute(limits[0], tuple(totals), tuple(totals.values())).devices)
    if len(limits) > len(devices):
        raise ConfigError(
            f"--models-device-memory has {len(limits)} values, but only {len(devices)} devices were found"
        )
    given = [*limits, *[AUTO_LIMIT] * len(devices)]
    return dict(zip(totals, given, strict=False))


def memory_budget_of(settings: Settings, environ: Mapping[str, str]) -> MemoryBudget:
    """Return the budget that the settings describe. `environ`: what workers inherit. Raises ConfigError."""
    read = functools.partial(read_devices, environ)
    limits = settings.router.models_device_memory
    readable = read()
    counted = readable or tuple(
        SystemDevice(unknown_device(i), size, size) for i, size in enumerate(limits) if size > 0
    )
    devices = Devices(counted)
    return MemoryBudget(
        MemoryRequirements(environ, devices if readable else Devices()),
        devices,
        host=settings.router.models_memory,
        budgets=budgets_of(limits, counted),
        margin=settings.router.models_memory_margin << 20,
        read_devices=read,
    )


class _UnlimitedBudget(MemoryBudget):
    """A budget without any limit: it reads nothing and estimates nothing."""

    def __init__(self) -> None:
        super().__init__(MemoryRequirements({}, Devices()), Devices(), host=NO_LIMIT, budgets={})

    async def expected(self, preset: Preset) -> Need | None:
        return None


UNLIMITED: MemoryBudget = _UnlimitedBudget()
