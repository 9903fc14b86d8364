"""Download models into the cache: start a worker that only downloads, follow its progress, cancel it, handle its end.

Owned by `lifecycle`; writes only the catalog's entries that are downloading. Downloads do not count against
--models-max. The caller that starts one passes a function that reads the sources again. It runs after the download, so
that the cache's entry exists before the end is published.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llama_corral.common.base.errors import ApiError, InvalidRequest, ServerFault, Unavailable
from llama_corral.common.base.worker_reports import DOWNLOAD_ENV, WorkerReport

from ..models.events import ModelEvents
from ..models.exit_reasons import exit_description
from ..models.model import Model, exit_code_of, launch_spec
from ..models.registry import Catalog
from ..models.tasks import Tasks
from ..placement.states import ModelState
from ..process.launcher import Callbacks, Launcher, Worker

if TYPE_CHECKING:
    from llama_corral.presets.sources import Preset

log = logging.getLogger("corral.router")

ReloadSources = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Download:
    model: Model
    reload_sources: ReloadSources
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    worker: Worker | None = None
    failure: str = ""
    is_cancelled: bool = False


class Downloads:
    def __init__(self, launcher: Launcher, catalog: Catalog, events: ModelEvents) -> None:
        self._launcher = launcher
        self._catalog = catalog
        self._events = events
        self._running: dict[str, Download] = {}
        self._exits = Tasks()
        self._is_closed = False

    def names(self) -> list[str]:
        return list(self._running)

    def start(self, preset: Preset, reload_sources: ReloadSources) -> None:
        """Start a download under an unused name. `reload_sources` is called at its end. Raises ApiError."""
        if self._is_closed:
            raise Unavailable("the router is shutting down")
        if self._catalog.find(preset.name) is not None:
            raise InvalidRequest(f"model '{preset.name}' already exists")
        model = Model(preset.name, preset, ModelState.DOWNLOADING)
        download = Download(model, reload_sources)
        spec = launch_spec(preset)
        spec = dataclasses.replace(spec, environ={**spec.environ, DOWNLOAD_ENV: "1"})
        callbacks = Callbacks(
            lambda report: self._on_report(download, report), lambda code: self._on_exit(download, code)
        )
        try:
            download.worker = self._launcher.launch(spec, callbacks)
        except OSError as error:
            raise ServerFault(f"failed to spawn a download: {error}") from None
        self._catalog.add(model)
        self._running[preset.name] = download
        log.info("downloading %s", preset.name)
        self._events.publish(preset.name, "model_status", {"status": ModelState.DOWNLOADING.value})

    async def cancel(self, name: str) -> bool:
        """Cancel a download and wait for its end. False: no download has that name."""
        download = self._running.get(name)
        if download is None:
            return False
        download.is_cancelled = True
        if download.worker is not None:
            download.worker.kill()
        await download.ended.wait()
        return True

    async def close(self) -> None:
        self._is_closed = True
        for name in self.names():
            await self.cancel(name)

    def _on_report(self, download: Download, report: WorkerReport) -> None:
        if report.state == "failed":
            download.failure = str(report.payload.get("message", ""))
        if report.state != "downloading":
            return
        payload, progress = report.payload, download.model.progress
        progress[str(payload.get("url", ""))] = {"done": payload.get("downloaded", 0), "total": payload.get("total", 0)}
        self._events.publish(download.model.name, "download_progress", {"progress": dict(progress)})

    def _on_exit(self, download: Download, returncode: int) -> None:
        self._exits.spawn(self._end(download, returncode))

    async def _end(self, download: Download, returncode: int) -> None:
        """Read the sources again if the download succeeded, remove its entry and publish the result."""
        name, worker = download.model.name, download.worker
        failed = exit_code_of(returncode) != 0
        lines = worker.last_lines if worker is not None else ()
        why = "cancelled" if download.is_cancelled else download.failure or exit_description(returncode, lines)
        del self._running[name]
        try:
            if not failed:
                download.model.transition_to(ModelState.DOWNLOADED)
                await download.reload_sources()
        except ApiError as error:
            log.error("the sources cannot be read after the download of %s: %s", name, error.message)
        finally:
            self._catalog.remove(download.model)
            self._publish_failure(name, why if failed else "")
            download.ended.set()

    def _publish_failure(self, name: str, why: str) -> None:
        if why:
            log.warning("download of %s failed: %s", name, why)
            self._events.publish(name, "download_failed", {"error": why})
        else:
            log.info("download of %s has finished", name)
            self._events.publish(name, "download_finished")
