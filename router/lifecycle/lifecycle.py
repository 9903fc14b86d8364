"""The only owner of all models' states: which models run, wait and stop.

Handlers request a result (`async with lifecycle.lease(model)`) and never act on a state that they have read. It runs on
one event loop, and every change happens between two awaits. After each change `dispatcher` carries out what `placement`
decides. It does not use HTTP, and uses processes only through `launcher.Launcher`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from llama_corral.common.base.errors import (
    ConfigError,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    ServerFault,
    Unavailable,
)

from ..memory.budget import UNLIMITED, MemoryBudget
from ..models.events import ModelEvents, Subscription
from ..models.model import Instance, Model, ModelView, view_of
from ..models.queue import Lease, RequestQueue
from ..models.registry import Catalog
from ..models.tasks import Tasks
from ..placement.snapshot import DEFAULT_RULES, PlacementRules, Retention
from ..placement.states import ModelState
from ..process.launcher import Launcher
from .dispatcher import Dispatcher
from .downloads import Downloads
from .leases import Leases
from .memory_accounting import MemoryAccounting
from .supervisor import Supervisor

if TYPE_CHECKING:
    from llama_corral.presets.sources import Preset

FAKE_TIMING_ENV = "LLAMA_SERVER_DEBUG_FAKE_TIMING"
"""If it is set, to any value, loads begin `FAKE_LOAD_DELAY` late. llama-server's tests of the queue need it."""
FAKE_LOAD_DELAY = 2.0  # seconds, as in llama-server
EXIT_WAIT_S = 1.0
"""Longest wait for an exit after a worker has closed its sockets; usually milliseconds, unless it still runs."""

log = logging.getLogger("corral.router")


class Lifecycle:
    def __init__(
        self,
        presets: Mapping[str, Preset],
        launcher: Launcher,
        *,
        models_max: int,
        autoload: bool,
        clock: Callable[[], float] = time.monotonic,
        load_delay: float = 0.0,
        memory_budget: MemoryBudget = UNLIMITED,
        rules: PlacementRules = DEFAULT_RULES,
        worker_timeout: float = 0.0,
    ) -> None:
        """`load_delay`: seconds before each start, see FAKE_TIMING_ENV.

        Raises ConfigError if more models are marked load-on-startup than `models_max` allows.
        """
        self._launcher = launcher
        self._autoload = autoload
        self._clock = clock
        self._load_delay = load_delay
        self._memory_accounting = MemoryAccounting(memory_budget, clock, rules)
        self._catalog = Catalog(presets, launcher.command)
        self._queue = RequestQueue()
        self._events = ModelEvents(self._catalog.variants_of)
        self._supervisor = Supervisor(
            launcher, self._events, self._on_change, self._on_exit, worker_timeout=worker_timeout, clock=clock
        )
        self._dispatcher = Dispatcher(
            self._catalog,
            self._queue,
            self._memory_accounting,
            self._supervisor,
            models_max=models_max,
            load_delay=load_delay,
        )
        self._leases = Leases(self._catalog, self._queue, self._dispatcher, self._supervisor, clock, rules.max_queue)
        self.downloads = Downloads(launcher, self._catalog, self._events)
        self._tasks = Tasks()
        self._reloads = asyncio.Lock()
        self._is_refusing = self._is_closing = False
        self._startup = sorted(model.name for model in self._catalog if model.preset.load_on_startup)
        if 0 < models_max < len(self._startup):
            raise ConfigError(
                f"number of models to load on startup ({len(self._startup)}) exceeds models_max ({models_max})"
            )

    def set_quiet_time_source(self, quiet_for: Callable[[str], float]) -> None:
        """Set the function that returns the seconds since an endpoint's last byte: the sign of life of a program."""
        self._supervisor.quiet_for = quiet_for

    # -- called by handlers ------------------------------------------------------------------------------------------

    def find(self, name: str) -> str | None:
        """Return the canonical name for a name or an alias; None if it is unknown."""
        return self._catalog.resolve(name)

    def view(self, name: str) -> ModelView | None:
        model, variant = self._catalog.find(name), self._catalog.variant(name)
        return None if model is None else view_of(model, self._queue.count(model.name), self._clock(), variant)

    def views(self) -> list[ModelView]:
        """Return all models and variants by name, including hidden ones."""
        return [view for name in self._catalog.names() if (view := self.view(name)) is not None]

    def subscribe(self) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe to the changes from now on, as `/models/sse` sends them."""
        return self._events.subscribe()

    @asynccontextmanager
    async def lease(
        self, model: str, *, autoload: bool | None = None, touch: bool = True, retention: Retention | None = None
    ) -> AsyncIterator[Lease]:
        """Wait until `model` accepts requests, load it if allowed, and protect it from eviction inside the block.

        `autoload`: overrides the router's setting. `touch`: count this as a use of the model. `retention`: how long the
        model is kept from now on, unless its preset pins it. Cancelling the wait gives up the place in the queue.
        Raises ApiError.
        """
        if (found := self._catalog.find(model)) is not None:
            await self._memory_accounting.estimate_memory(found)
        record, variant = self._requested(model), self._catalog.variant(model)
        may_load = self._autoload if autoload is None else autoload
        take = self._leases.lease_or_load if may_load else self._leases.lease_if_loaded
        lease = await take(record, touch, retention)
        is_answered = False
        try:
            yield lease if variant is None else replace(lease, preset=variant)
            is_answered = True
        finally:
            self._leases.release(lease, is_answered=is_answered)

    async def wait_for_exit(self, lease: Lease) -> str:
        """Return why a worker ended that closed a connection; an empty string if it did not fail.

        Waits until its exit is known, so that no request is sent to a dead worker; at most EXIT_WAIT_S.
        """
        instance = lease.instance
        assert isinstance(instance, Instance)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(instance.exited.wait(), EXIT_WAIT_S)
        return instance.failure if instance.is_fault else ""

    async def load(self, name: str) -> None:
        """Start a worker by command, without the queue; return when it is started. Raises ApiError."""
        model = self._catalog.find(name)
        if model is None:
            raise NotFound("model is not found")
        if model.state.is_running:
            raise InvalidRequest("model is already running")
        if model.state is ModelState.DOWNLOADING:
            raise InvalidRequest("model is downloading")
        await asyncio.sleep(self._load_delay)
        await self._memory_accounting.estimate_memory(model)
        await self._dispatcher.evict_for_load(model)
        await self._dispatcher.wait_for_release()
        if self._is_refusing:
            raise Unavailable("the router is shutting down")
        if model not in self._catalog:
            raise NotFound("model is not found")
        if not model.state.is_down:
            return  # it was started in the meantime
        self._dispatcher.check_fits(model)
        self._dispatcher.start(model)
        self._dispatcher.tick()
        if model.state is ModelState.FAILED:
            raise ServerFault(model.failure)

    async def unload(self, name: str) -> None:
        """Stop a running model without waiting for its exit or its requests; cancel a download.

        Raises ApiError.
        """
        model = self._catalog.find(name)
        if model is None:
            raise InvalidRequest("model is not found")
        if await self.downloads.cancel(model.name):
            return
        if not model.state.is_running:
            raise InvalidRequest("model is not running")
        model.is_unload_requested = True
        self._supervisor.stop(model, "unload was requested")
        self._dispatcher.tick()

    def unload_when_idle(self, name: str) -> None:
        """Unload a model as soon as it is idle, even a pinned one; do nothing if it is not running."""
        model = self._requested(name)
        if model.instance is not None:
            model.instance.requested_retention = Retention(ttl=0.0)
            self._dispatcher.unload_expired()

    def unload_expired(self) -> None:
        """Do what the timers do, for callers that change the clock."""
        self._dispatcher.tick()
        self._dispatcher.unload_expired()

    async def stop_and_wait(self, name: str) -> None:
        """Stop a model's worker or cancel its download, if there is one, and wait for the end."""
        model = self._catalog.find(name)
        if model is None or await self.downloads.cancel(model.name):
            return
        if (instance := model.instance) is not None:
            model.is_unload_requested = True
            self._supervisor.stop(model, "its files will be removed")
            await instance.exited.wait()

    def publish_removed(self, name: str) -> None:
        self._events.publish(name, "model_remove")

    async def reload(self, presets: Mapping[str, Preset]) -> None:
        """Apply a new set of presets. Only models whose own options changed are stopped, a busy one once it is idle."""
        await asyncio.shield(self._tasks.spawn(self._reload(presets)))

    async def start(self) -> None:
        """Start the launcher and the models marked load-on-startup, one after the other. Raises ApiError."""
        self._launcher.start()
        for name in self._startup:
            log.info("(startup) loading model %s", name)
            await self.load(name)
        self._dispatcher.tick()

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    def stop_serving(self) -> None:
        """Refuse waiting and new requests, and end event streams; requests that have a lease continue."""
        if self._is_refusing:
            return
        self._is_refusing = True
        self._dispatcher.close()
        self._tasks.cancel()
        self._queue.refuse_all(functools.partial(Unavailable, "the router is shutting down"))
        self._events.close()

    async def close(self) -> None:
        """Stop all workers and wait until they have exited. A second call kills them immediately."""
        instances = [model.instance for model in self._catalog if model.instance]
        if self._is_closing:
            for instance in instances:
                instance.worker.kill()
        else:
            self._begin_closing()
        await self.downloads.close()
        for instance in instances:
            await instance.exited.wait()
        await self._launcher.close()

    # -- names ------------------------------------------------------------------------------------------------------

    def _requested(self, name: str) -> Model:
        if not name:
            raise InvalidRequest("model name is missing from the request")
        if self._is_refusing:
            raise Unavailable("the router is shutting down")
        model = self._catalog.find(name)
        if model is None:
            raise InvalidRequest(f"model '{name}' not found")
        return model

    # -- reactions to workers ----------------------------------------------------------------------------------------

    def _on_change(self, model: Model) -> None:
        self._memory_accounting.record_load(model)
        if model.instance is not None and model.state is ModelState.LOADED:
            model.instance.idle_since = self._clock()
            model.is_retried = False
        self._leases.grant_waiting(model)
        self._dispatcher.tick()
        self._dispatcher.unload_expired()

    def _on_exit(self, model: Model, instance: Instance) -> None:
        self._memory_accounting.record_exit()
        may_retry = instance.ran_out_of_memory and not (instance.idle_since or instance.is_retiring or model.is_retried)
        model.is_retried = may_retry and self._dispatcher.retry(model)
        if not model.is_retried:
            if instance.is_fault:
                model.record_failure(self._clock(), instance.idle_since or None)
            self._dispatcher.refuse_waiters(model)
        if instance.is_retiring and not self._catalog.finish_retirement(model):
            self._refuse_removed(model)
        self._dispatcher.tick()

    def _refuse_removed(self, model: Model) -> None:
        self._queue.refuse(model.name, functools.partial(ModelNotFound, model.name))

    # -- presets -----------------------------------------------------------------------------------------------------

    async def _reload(self, presets: Mapping[str, Preset]) -> None:
        async with self._reloads:
            self._dispatcher.hold_starts()
            try:
                await self._stop_retired(self._catalog.mark_retiring(presets))
                for model in self._catalog.apply_presets(presets):
                    log.info("(reload) removing name=%s: no source has it any more", model.name)
                    self._refuse_removed(model)
            finally:
                self._dispatcher.release_starts()
            for model in self._catalog:
                self._leases.grant_waiting(model)  # a reload that brings the old preset back ends a retirement
            self._events.publish("*", "models_reload")
            self._dispatcher.tick()
            self._dispatcher.unload_expired()

    async def _stop_retired(self, models: list[Model]) -> None:
        """Stop the idle models and wait for their exit. A busy one is stopped when its last lease is released."""
        idle = [model for model in models if model.instance and model.instance.leases == 0]
        leaving = [model.instance for model in idle if model.instance]
        for model in idle:
            self._supervisor.stop(model, "its preset was changed or removed")
        for instance in leaving:
            await instance.exited.wait()

    # -- shutdown ----------------------------------------------------------------------------------------------------

    def _begin_closing(self) -> None:
        self.stop_serving()
        self._is_closing = True
        for model in self._catalog:
            self._supervisor.stop(model, "the router is shutting down")
