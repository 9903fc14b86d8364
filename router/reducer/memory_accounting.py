"""Record how much memory each model uses, and make the snapshot on which `placement` decides.

Part of `state`. Reads the machine's memory only through `MemoryBudget`. Writes only a model's `need`, `expected` and
`load_seconds`, and its instance's `space`, `private_bytes` and `ready_since`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..memory.budget import MemoryBudget, WorkerMemory
from ..models.model import Instance, Model, resident_of
from ..models.registry import Catalog
from ..placement.device_split import NO_NEED, Need
from ..placement.memory_amounts import NOTHING, Limit, Space, total
from ..placement.snapshot import LoadCommand, PlacementRules, PlacementSnapshot, QueueEntry
from ..placement.states import ModelState

SETTLING_S = 5.0
"""Longest time after a worker's end until a driver reports its memory as free."""


class MemoryAccounting:
    def __init__(self, memory_budget: MemoryBudget, rules: PlacementRules) -> None:
        self._memory_budget = memory_budget
        self._rules = rules
        self._last_exit = -math.inf

    def __repr__(self) -> str:
        return f"<MemoryAccounting, last exit at {self._last_exit:.1f}>"

    def describe(self, catalog: Catalog, now: float) -> str:
        """Return how much memory all workers use, and how much they may use."""
        workers = self._workers(catalog)
        taken = total(worker.space for worker in workers)
        return f"<MemoryAccounting {len(workers)} workers use {taken}; limit: {self._limit(workers, now)}>"

    def record_estimate(self, model: Model, need: Need | None) -> None:
        """Record how much memory a model needs, unless it runs already."""
        if model.state.is_down:
            model.need = need
            model.expected = None if need is None else need.placed_within(self._memory_budget.empty_devices)

    def reserve(self, model: Model, catalog: Catalog) -> None:
        """Reserve a model's memory when it is started, on the devices that have free memory now."""
        if model.instance is not None and model.need is not None:
            workers = self._workers(other for other in catalog if other is not model)
            left = self._limit(workers, model.instance.started) - total(worker.space for worker in workers)
            model.expected = model.instance.space = model.need.placed_within(left)

    def record_load(self, model: Model, now: float) -> None:
        """Record the memory and the duration of a load when the model is loaded."""
        instance = model.instance
        if model.state is not ModelState.LOADED or instance is None:
            return
        taken = None if model.measured is None else self._memory_budget.usage_of(model.measured)
        if instance.private_bytes is None:
            instance.private_bytes = self._memory_budget.private_bytes(instance.pid)
            instance.ready_since = now
            model.load_seconds = instance.ready_since - instance.started
            if taken is not None:
                model.need = self._memory_budget.record_load(model.preset, model.need or NO_NEED, taken, instance.space)
        if taken is not None:  # after waking up the split over devices may differ
            model.expected = instance.space = taken

    def record_exit(self, now: float) -> None:
        self._last_exit = now

    def snapshot(
        self,
        catalog: Catalog,
        queue: tuple[QueueEntry, ...],
        loads: tuple[LoadCommand, ...],
        models_max: int,
        now: float,
        *,
        starts_held: bool,
    ) -> PlacementSnapshot:
        models = list(catalog)
        workers = self._workers(models)
        limit = self._limit(workers, now)
        left = limit - total(worker.space for worker in workers)
        return PlacementSnapshot(
            tuple(resident_of(model, self._expected_space(model, left)) for model in models),
            queue,
            models_max,
            starts_held=starts_held,
            limit=limit,
            now=now,
            is_settling=self._is_settling(now) or (self._memory_budget.reads_devices and _is_any_loading(models)),
            rules=self._rules,
            loads=loads,
        )

    def expiry_snapshot(self, models: Iterable[Model], now: float) -> PlacementSnapshot:
        """Return a snapshot of these models without their memory, for decisions about their `ttl`."""
        return PlacementSnapshot(tuple(resident_of(model) for model in models), (), 0, now=now, rules=self._rules)

    def _workers(self, models: Iterable[Model]) -> list[WorkerMemory]:
        running = (
            (model.instance, model.displayed_state is ModelState.LOADED)
            for model in models
            if model.instance is not None
        )
        return [WorkerMemory(instance.pid, self._grown(instance), is_loaded) for instance, is_loaded in running]

    def _limit(self, workers: list[WorkerMemory], now: float) -> Limit:
        return self._memory_budget.limit(workers, is_settling=self._is_settling(now))

    def _is_settling(self, now: float) -> bool:
        return now - self._last_exit < SETTLING_S

    def _expected_space(self, model: Model, left: Limit) -> Space:
        if model.instance is not None:
            return self._grown(model.instance)
        return model.need.placed_within(left) if model.need is not None else NOTHING

    def _grown(self, instance: Instance) -> Space:
        """Return its memory as estimated or measured at its load, plus its growth since it was ready."""
        if instance.private_bytes is None:
            return instance.space
        grown = self._memory_budget.private_bytes(instance.pid) - instance.private_bytes
        return instance.space + Space(max(0, grown))


def _is_any_loading(models: Iterable[Model]) -> bool:
    """Return True if a model loads; then it is unknown how much device memory it has already allocated."""
    return any(model.state is ModelState.LOADING for model in models)
