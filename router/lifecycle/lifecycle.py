"""The router's models as handlers use them: leases, commands and views.

Handlers request a result (`async with lifecycle.lease(model)`) and never act on a state that they have read. Each
method puts an event into `reducer`, which alone changes the state, and waits for the answer; `executor` carries out the
effects. It runs on one event loop, and every change happens between two awaits. It does not use HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeVar

from llama_corral.common.base.errors import ApiError, ConfigError, InvalidRequest, NotFound

from ..memory.budget import UNLIMITED, MemoryBudget
from ..models.download import ReadSources
from ..models.events import ModelEvents, Subscription
from ..models.model import Instance, ModelView
from ..models.queue import Command, Lease, LeaseRequest
from ..placement.snapshot import DEFAULT_RULES, PlacementRules, Retention
from ..process.launcher import Launcher
from ..reducer import events
from ..reducer.effects import REVIEW
from ..reducer.reducer import Reducer
from ..reducer.state import describe, initial_state
from ..slices import map_in_slices
from .executor import Executor

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset

FAKE_TIMING_ENV = "LLAMA_SERVER_DEBUG_FAKE_TIMING"
"""If it is set, to any value, loads begin `FAKE_LOAD_DELAY` late. llama-server's tests of the queue need it."""
FAKE_LOAD_DELAY = 2.0  # seconds, as in llama-server
EXIT_WAIT_S = 1.0
"""Longest wait for an exit after a worker has closed its sockets; usually milliseconds, unless it still runs."""

Shown = TypeVar("Shown")

log = logging.getLogger("corral.router")


class LeaseBlock:
    """`async with` block that has a lease: entering it waits for the lease, leaving it releases the lease.

    A class instead of a generator, because it runs for every request and takes half the time.
    """

    __slots__ = ("_clock", "_executor", "_request")

    def __init__(self, executor: Executor, clock: Callable[[], float], request: LeaseRequest) -> None:
        self._executor = executor
        self._clock = clock
        self._request = request

    async def __aenter__(self) -> Lease:
        lease = await self._executor.ask(events.RequestArrived(self._clock(), self._request), self._request)
        assert lease is not None
        return lease

    async def __aexit__(self, kind: type[BaseException] | None, _error: object, _traceback: object) -> None:
        self._executor.put(events.LeaseReleased(self._clock(), self._request, is_answered=kind is None))


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
        self._state = initial_state(
            presets, launcher.command, memory_budget, rules, models_max=models_max, load_delay=load_delay
        )
        self.reading_sources = asyncio.Lock()
        """Held from the beginning of reading the sources until the reload is done."""
        self._events = ModelEvents()
        self._executor = Executor(Reducer(self._state), launcher, memory_budget, self._events, clock, worker_timeout)
        self._startup = sorted(model.name for model in self._state.catalog if model.preset.load_on_startup)
        if 0 < models_max < len(self._startup):
            raise ConfigError(
                f"number of models to load on startup ({len(self._startup)}) exceeds models_max ({models_max})"
            )

    def set_quiet_time_source(self, quiet_for: Callable[[str], float]) -> None:
        """Set the function that returns the seconds since an endpoint's last byte: the sign of life of a program."""
        self._executor.quiet_for = quiet_for

    # -- reading -----------------------------------------------------------------------------------------------------

    def find(self, name: str) -> str | None:
        """Return the canonical name for a name or an alias; None if it is unknown."""
        return self._state.catalog.resolve(name)

    def view(self, name: str) -> ModelView | None:
        return self._state.view(name, self._clock())

    def names(self) -> list[str]:
        """Return the names of all models and variants, sorted, including hidden ones."""
        return self._state.catalog.names()

    def views(self) -> list[ModelView]:
        """Return all models and variants by name, including hidden ones. For thousands of models use `each_view`."""
        return [view for name in self.names() if (view := self.view(name)) is not None]

    async def each_view(self, show: Callable[[ModelView], Shown]) -> list[Shown]:
        """Return `show` of each model and variant that is not hidden, by name.

        Other tasks run between some of them, so two models may be shown as they were at slightly different times.
        """

        def show_one(name: str) -> list[Shown]:
            view = self.view(name)
            return [] if view is None or view.preset.hidden else [show(view)]

        return [shown for one in await map_in_slices(show_one, self.names()) for shown in one]

    def presets(self) -> Mapping[str, Preset]:
        """Return the presets as they were last applied."""
        return self._state.catalog.presets

    def downloads(self) -> list[str]:
        """Return the names of the models that are downloading."""
        return list(self._state.downloads)

    def subscribe(self) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe to the changes from now on, as `/models/sse` sends them. Entering it raises TooManyRequests."""
        return self._events.subscribe()

    def describe(self) -> str:
        """Return the whole state as text, for the log."""
        return describe(self._state, self._clock())

    @property
    def is_closing(self) -> bool:
        return self._state.is_closing

    # -- requests ----------------------------------------------------------------------------------------------------

    def lease(
        self, model: str, *, autoload: bool | None = None, touch: bool = True, retention: Retention | None = None
    ) -> LeaseBlock:
        """Wait until `model` accepts requests, load it if allowed, and protect it from eviction inside the block.

        `autoload`: overrides the router's setting. `touch`: count this as a use of the model. `retention`: how long the
        model is kept from now on, unless its preset pins it. Cancelling the wait gives up the place in the queue.
        Raises ApiError.
        """
        request = LeaseRequest(model, self._autoload if autoload is None else autoload, touch, retention)
        return LeaseBlock(self._executor, self._clock, request)

    def report_answer(self, lease: Lease, status: int) -> None:
        """Report the HTTP status that an external program answered; 502 if it closed the connection instead."""
        instance = lease.instance
        assert isinstance(instance, Instance)
        self._executor.put(events.ProgramAnswered(self._clock(), instance, status))

    async def wait_for_exit(self, lease: Lease) -> str:
        """Return why a worker ended that closed a connection; an empty string if no reason is known.

        Waits until its exit is known, so that no request is sent to a dead worker; at most EXIT_WAIT_S.
        """
        instance = lease.instance
        assert isinstance(instance, Instance)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._executor.wait_for_exit(instance), EXIT_WAIT_S)
        if instance.is_fault:
            return instance.failure
        return f"it was unloaded: {instance.stop_reason}" if instance.stop_reason else ""

    # -- commands ----------------------------------------------------------------------------------------------------

    async def load(self, name: str) -> None:
        """Start a worker without the queue; return when it is started. Raises ApiError."""
        command = Command(f"load {name}")
        await self._executor.ask(events.LoadRequested(self._clock(), command, name), command)

    async def unload(self, name: str) -> None:
        """Stop a running model without waiting for its exit or its requests; cancel a download.

        Raises ApiError.
        """
        command = Command(f"unload {name}")
        await self._executor.ask(events.UnloadRequested(self._clock(), command, name), command)

    def unload_when_idle(self, name: str) -> None:
        """Unload a model as soon as it is idle, even a pinned one; do nothing if it is not running. Raises ApiError."""
        command = Command(f"unload {name} when idle")
        self._executor.ask_now(events.IdleUnloadRequested(self._clock(), command, name), command)

    def unload_expired(self) -> None:
        """Do what the timers do, for callers that change the clock."""
        self._executor.put(events.TimerFired(self._clock(), REVIEW))

    async def stop_and_wait(self, name: str) -> None:
        """Stop a model's worker or cancel its download, if there is one, and wait for the end."""
        command = Command(f"stop {name}")
        await self._executor.ask(events.RemovalRequested(self._clock(), command, name), command)

    def publish_removed(self, name: str) -> None:
        self._executor.put(events.RemovalDone(self._clock(), name))

    async def reload(self, presets: Mapping[str, Preset]) -> None:
        """Apply a new set of presets. Only models whose own options changed are stopped, a busy one once it is idle."""
        command = Command("reload")
        await self._executor.ask(events.ReloadRequested(self._clock(), command, presets), command)

    def download(self, preset: Preset, read_sources: ReadSources) -> None:
        """Start a download under an unused name. `read_sources` is called at its end. Raises ApiError."""
        command = Command(f"download {preset.name}")
        self._executor.ask_now(events.DownloadRequested(self._clock(), command, preset, read_sources), command)

    async def cancel_download(self, name: str) -> None:
        """Cancel a download, if there is one, and wait for its end."""
        command = Command(f"cancel the download of {name}")
        await self._executor.ask(events.DownloadCancelled(self._clock(), command, name), command)

    # -- start and end -----------------------------------------------------------------------------------------------

    async def start(self, *, is_strict: bool = False) -> None:
        """Start the launcher and the models marked load-on-startup, one after the other.

        `is_strict`: raises ApiError for a model that cannot be loaded; else it is logged, and the others are loaded.
        A model is left out if a request has already loaded it, or a reload has removed it.
        """
        self._launcher.start()
        for name in self._startup:
            log.info("(startup) loading model %s", name)
            try:
                await self.load(name)
            except (InvalidRequest, NotFound) as error:
                log.info("(startup) model %s is not loaded: %s", name, error.message)
            except ApiError as error:
                if is_strict:
                    raise
                log.error("(startup) model %s is not loaded: %s", name, error.message)
        self._executor.put(events.ServingStarted(self._clock()))

    def stop_serving(self) -> None:
        """Refuse waiting and new requests, and end event streams; requests that have a lease continue."""
        self._executor.put(events.ServingStopped(self._clock()))

    async def close(self) -> None:
        """Stop all workers and wait until they have exited. A second call kills them immediately."""
        command = Command("close")
        await self._executor.ask(events.ClosingRequested(self._clock(), command), command)
        await self._launcher.close()
