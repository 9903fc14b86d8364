"""The engine's interface to the event loop: load, use, sleep, wake, close. It starts and controls the engine thread.

Called by the worker's application only, on the loop's thread. Reports `loading` (with progress), and, for a model that
slept, `sleeping`, `loading` and `ready` without payload. The application reports the first `ready`, with a payload.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llama_corral.common.base.errors import SHUTTING_DOWN, ServerFault, Unavailable
from llama_corral.common.base.worker_reports import DeviceUsage, MemoryUsage, WorkerReport
from msgspec import Struct

from .adapters.lora import AdapterInfo
from .batching.jobs import Job
from .counters import Counters, Metrics, RateMeter
from .llama.devices import address_of, device_names, usual_devices
from .llama.errors import LoadError
from .llama.memory_log import allocations
from .llama.model import MediaSupport, ModelInfo
from .llama.options import from_settings
from .llama.vocab import Vocab
from .loaded_model import LoadedModel, Ticket
from .messages import Event
from .slot_views import SlotView
from .speculative.options import with_drafts
from .thread import EngineThread

if TYPE_CHECKING:
    from llama_corral.common.base.private_directory import PrivateDirectory
    from llama_corral.common.hub.resolve import ModelFiles
    from llama_corral.presets.options.settings import Settings

__all__ = [
    "AdapterInfo",
    "Engine",
    "EngineSnapshot",
    "LoadError",
    "LoadedModel",
    "MediaSupport",
    "Metrics",
    "ModelInfo",
    "SlotView",
    "Ticket",
    "Vocab",
]

log = logging.getLogger("corral.engine")

IDLE_BEFORE_INDEX = 2.0
"""Seconds without use after which a large vocabulary is prepared for grammars.

The interpreter stands still for up to a second meanwhile, which would interrupt streams. During the load it would delay
the first answer by seconds on a machine with few cores.
"""


class EngineSnapshot(Struct, frozen=True):
    """The engine's state that is available even if the model is not loaded."""

    info: ModelInfo | None  # None until the first load
    totals: Counters
    is_sleeping: bool


class Engine:
    """The engine of one model. Must be constructed on the event loop."""

    def __init__(
        self,
        settings: Settings,
        files: ModelFiles,
        on_state: Callable[[WorkerReport], None],
        media_marker: str = "<__media__>",
        disk: PrivateDirectory | None = None,
    ) -> None:
        """`disk`: the directory that caches prompts while the model is unloaded, if the settings allow it."""
        self._settings = settings
        self._media_marker = media_marker
        self._files = files
        self._on_state = on_state
        self._thread = EngineThread(asyncio.get_running_loop(), _deliver, self._on_progress, disk)
        self._loaded: LoadedModel | None = None
        self._info: ModelInfo | None = None
        self._stages: list[str] = []
        self._totals = Counters()
        self._meter = RateMeter()
        self._residency = asyncio.Lock()  # held during a load or unload
        self._holders = 0
        self._sleep_after = float(settings.context.sleep_idle_seconds)
        self._sleep_timer: asyncio.TimerHandle | None = None
        self._sleep_task: asyncio.Task[None] | None = None
        self._index_timer: asyncio.TimerHandle | None = None
        self._index_task: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._closed = False
        self._why_closed = ""

    # -- life ---------------------------------------------------------------------------------------------------------

    async def load(self, *, is_idle: bool = True) -> None:
        """Start the engine thread and load the model. Call it once. Raises LoadError with the reason.

        `is_idle`: False if the idle time begins only with the end of the first use.
        """
        async with self._residency:
            self._thread.start()
            await self._load()
        if is_idle:
            self._arm_timers()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[LoadedModel]:
        """Keep the model in memory within the block; load it first if it sleeps.

        Handlers keep the block open until their response is complete. Raises Unavailable before the first load and
        after `close`, ServerFault if the model cannot be loaded again.
        """
        self._holders += 1
        self._disarm_timers()
        try:
            yield await self._awake()
        finally:
            self._holders -= 1
            if not self._holders:
                self._arm_timers()

    def set_idle_timeout(self, seconds: float) -> None:
        """Set the idle seconds after which the model sleeps, instead of the settings' value. Negative: never."""
        self._sleep_after = seconds
        if not self._holders:
            self._arm_timers()

    @property
    def sleeps_in(self) -> float | None:
        """Seconds until the model sleeps if it is not used from now on. None: it never sleeps."""
        if self._sleep_timer is not None:
            return max(0.0, self._sleep_timer.when() - asyncio.get_running_loop().time())
        return self._sleep_after if self._sleep_after >= 0 else None

    async def close(self, reason: str = SHUTTING_DOWN) -> None:
        """Fail the running requests and unload the model. Return when its memory is free. Idempotent.

        `reason`: what their clients are told.
        """
        was_closed, self._closed = self._closed, True
        if not was_closed:
            self._why_closed = reason
        self._disarm_timers()
        if was_closed or self._thread.ident is None:
            return
        async with self._residency:
            if self._loaded is not None:
                self._loaded.core.decoder.abort_if(lambda _: True)
            self._totals, self._loaded = self._current_totals(), None
            await self._thread.call(lambda: self._thread.stop(reason))

    # -- monitoring: never loads the model and does not reset the idle timer ------------------------------------------

    @property
    def is_sleeping(self) -> bool:
        return self._loaded is None and self._info is not None and not self._closed

    @property
    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(self._info, self._current_totals(), self.is_sleeping)

    @property
    def progress(self) -> tuple[bool, int]:
        """Return (True if the engine has work, a counter that grows while the engine thread makes progress)."""
        core = self._thread.core
        return core is not None and core.busy, self._thread.turns

    def metrics(self) -> Metrics:
        """Return totals, and rates since the previous call."""
        return self._meter.read(self._current_totals())

    def _current_totals(self) -> Counters:
        return self._loaded.core.published if self._loaded is not None else self._totals

    # -- sleep --------------------------------------------------------------------------------------------------------

    async def _awake(self) -> LoadedModel:
        if self._info is None or self._closed:
            raise Unavailable("Loading model" if not self._closed else self._why_closed)
        if self._loaded is None:
            if self._waking is None or self._waking.done():
                self._waking = asyncio.ensure_future(self._wake())
                self._waking.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.shield(self._waking)  # a client that disconnects must not interrupt the load
        assert self._loaded is not None
        return self._loaded

    async def _wake(self) -> None:
        async with self._residency:
            if self._loaded is not None:
                return
            log.info("waking up")
            self._on_state(WorkerReport("loading"))
            try:
                await self._load()
            except LoadError as error:
                self._on_state(WorkerReport("sleeping"))  # the next request tries again
                raise ServerFault(f"The model could not be loaded again: {error}") from error
            self._on_state(WorkerReport("ready", memory=self.memory_usage))

    @property
    def memory_usage(self) -> MemoryUsage:
        """The memory that the last load of the model allocated."""
        usual = usual_devices()
        used = allocations.device_bytes(device_names(), self._settings.load.device or usual)
        parts = [DeviceUsage(name, size, address_of(name)) for name, size in used.items()]
        # no address for unused devices: querying it would initialise the device
        parts += [DeviceUsage(name, 0) for name in usual if name not in used]
        return MemoryUsage(allocations.host_bytes, tuple(parts))

    async def _load(self) -> None:
        allocations.clear()
        options = from_settings(self._settings, self._files.model, self._files.mmproj, self._media_marker)
        options = with_drafts(options, self._settings, self._files)
        self._stages = options.stages
        core = await self._thread.call(lambda: self._thread.load(options))
        self._loaded = LoadedModel(core, self._thread)
        self._info = self._loaded.info

    async def _sleep(self) -> None:
        async with self._residency:
            if self._holders or self._loaded is None or self._closed:
                return
            log.info("going to sleep")
            self._totals = self._current_totals()
            self._loaded = None
            await self._thread.call(lambda: self._thread.unload("the model is going to sleep"))
        self._on_state(WorkerReport("sleeping"))

    def _arm_timers(self) -> None:
        self._disarm_timers()
        loop = asyncio.get_running_loop()
        if self._sleep_after >= 0 and not self._closed:
            self._sleep_timer = loop.call_later(self._sleep_after, self._fall_asleep)
        if self._loaded is not None and self._loaded.should_be_indexed:
            self._index_timer = loop.call_later(IDLE_BEFORE_INDEX, self._begin_index)

    def _disarm_timers(self) -> None:
        for timer in (self._sleep_timer, self._index_timer):
            if timer is not None:
                timer.cancel()
        self._sleep_timer = self._index_timer = None

    def _begin_index(self) -> None:
        self._index_task = asyncio.ensure_future(self._prepare_vocabulary())

    async def _prepare_vocabulary(self) -> None:
        async with self._residency:  # the vocabulary is freed with the model
            loaded = self._loaded
            if loaded is not None and not self._holders and not self._closed and loaded.should_be_indexed:
                await asyncio.to_thread(loaded.index_vocab)

    def _fall_asleep(self) -> None:
        self._sleep_task = asyncio.ensure_future(self._sleep())

    def _on_progress(self, stage: str, value: float) -> None:
        if self._info is None:  # reports of a later load have no payload
            self._on_state(WorkerReport("loading", {"stages": self._stages, "current": stage, "value": value}))


def _deliver(events: list[tuple[Job, Event]]) -> None:
    """Deliver all events of one step. Runs on the loop's thread."""
    for job, event in events:
        try:
            job.deliver(event)
        except Exception:  # a failure in one request's handler must not stop the events of the others
            log.exception("a request handler failed to process an event")
