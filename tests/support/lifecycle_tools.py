"""Runs a lifecycle with workers that are not processes, and clients that record their results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from llama_corral.common.base.errors import ApiError
from llama_corral.presets.options.values import AUTO_LIMIT, NO_LIMIT
from llama_corral.presets.preset import Preset
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.memory.budget import MemoryBudget
from llama_corral.router.memory.devices import Devices, SystemDevice
from llama_corral.router.memory.host import HostMemory
from llama_corral.router.memory.requirements import MemoryRequirements
from llama_corral.router.models.events import ModelEvent, Subscription
from llama_corral.router.models.queue import Lease
from llama_corral.router.placement.device_split import Need
from llama_corral.router.placement.memory_amounts import Space
from memory_workers import InProcessLauncher
from router_tools import preset, presets

GIB = 1 << 30


class SizedBudget(MemoryBudget):
    """Models of given sizes, on a machine whose free memory the test sets."""

    def __init__(
        self, host: int = AUTO_LIMIT, device: int | Mapping[str, int] = NO_LIMIT, **needs: Need | Space | int
    ) -> None:
        """`device` is the memory of CUDA0, or of several devices by name."""
        budgets = {"CUDA0": device} if isinstance(device, int) else dict(device)
        devices = Devices([SystemDevice(name, 100 * GIB, 0) for name in budgets])
        super().__init__(
            MemoryRequirements({}, Devices()),
            devices,
            host=host,
            budgets=budgets,
            read_host=lambda: HostMemory(100 * GIB, self.free),
            read_devices=lambda: [SystemDevice(name, 100 * GIB, free) for name, free in self.free_on.items()],
            private_bytes=lambda pid: self.private.get(pid, 0),
        )
        self.free = 0
        self.free_on = dict.fromkeys(budgets, 100 * GIB)
        self.private: dict[int, int] = {}
        self.needs = {name: need if isinstance(need, Need) else Need(_space(need)) for name, need in needs.items()}

    async def expected(self, preset: Preset) -> Need | None:
        return self.needs.get(preset.name) or await super().expected(preset)


def _space(need: Space | int) -> Space:
    return Space(need * GIB) if isinstance(need, int) else need


class LeaseClient:
    """A request in the background: waits for its lease and keeps it until the test ends it."""

    def __init__(self, lifecycle: Lifecycle, model: str, **options: Any) -> None:
        self.lease: Lease | None = None
        self._finish = asyncio.Event()
        self.task = asyncio.create_task(self._request(lifecycle, model, options))

    async def _request(self, lifecycle: Lifecycle, model: str, options: dict[str, Any]) -> None:
        async with lifecycle.lease(model, **options) as self.lease:
            await self._finish.wait()

    @property
    def is_served(self) -> bool:
        return self.lease is not None

    async def finish(self) -> None:
        self._finish.set()
        await self.task

    async def leave(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task

    async def refused(self) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.task
        return caught.value


class LifecycleHarness:
    """A lifecycle with workers that are not processes."""

    def __init__(self, *names: str, models_max: int = 1, **options: Any) -> None:
        self.now = 0.0
        self.launcher = InProcessLauncher()
        entries = options.pop("presets", None) or presets(*(preset(name) for name in names or ("a", "b", "c")))
        options = {"autoload": True, **options}
        self.lifecycle = Lifecycle(entries, self.launcher, models_max=models_max, clock=self.clock, **options)

    def clock(self) -> float:
        self.now += 1
        return self.now

    def client(self, model: str, **options: Any) -> LeaseClient:
        return LeaseClient(self.lifecycle, model, **options)

    def status(self, name: str) -> str:
        view = self.lifecycle.view(name)
        assert view is not None
        return view.status

    async def up(self, *names: str) -> None:
        for name in names:
            await self.lifecycle.load(name)
            self.launcher[name].ready()
        await settle()

    async def close(self) -> None:
        closing = asyncio.create_task(self.lifecycle.close())
        await settle()
        for worker in self.launcher.alive:
            worker.leave()
        await closing


@asynccontextmanager
async def router(*names: str, models_max: int = 1, **options: Any) -> AsyncIterator[LifecycleHarness]:
    made = LifecycleHarness(*names, models_max=models_max, **options)
    yield made
    await made.close()


async def settle() -> None:
    """Wait until all pending tasks have run."""
    for _ in range(10):
        await asyncio.sleep(0)


def drained(events: Subscription) -> list[tuple[str, str, Any]]:
    found = []
    while not events.empty():
        event = events.get_nowait()
        assert isinstance(event, ModelEvent)
        found.append((event.model, event.event, event.data))
    return found
