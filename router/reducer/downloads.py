"""Handle downloads into the cache: start a worker that only downloads, follow its progress, cancel it, handle its end.

Writes only the catalog's entries that are downloading. Downloads do not count against --models-max. After a download
the sources are read again before its end is published, so that the cache's entry exists by then. Few downloads run at a
time, and the next ones wait, since each is a process, and clients may ask for any number of them.
"""

from __future__ import annotations

import logging

from llama_corral.common.base.errors import InvalidRequest, ServerFault, TooManyRequests, Unavailable
from llama_corral.common.base.worker_reports import DOWNLOAD_ENV
from msgspec.structs import replace

from ..models.download import Download
from ..models.exit_reasons import exit_description
from ..models.model import Model, exit_code_of, launch_spec
from ..models.queue import Command
from ..placement.states import ModelState
from .effects import Finish, KillWorker, ReadSourcesAgain, Refuse, StartWorker
from .events import (
    DownloadCancelled,
    DownloadRequested,
    SourcesRead,
    StartFailed,
    WorkerExited,
    WorkerReported,
    WorkerStarted,
)
from .state import ExitWait, State

MAX_RUNNING = 2
"""Maximum number of downloads at a time."""
MAX_WAITING = 20
"""Maximum number of downloads that wait; further ones are refused."""

log = logging.getLogger("corral.router")


def on_requested(state: State, event: DownloadRequested) -> None:
    """Start a download under an unused name, or let it wait for the end of others. Raises ApiError."""
    name = event.preset.name
    if state.is_closing:
        raise Unavailable("the router is shutting down")
    if state.catalog.find(name) is not None:
        raise InvalidRequest(f"model '{name}' already exists")
    n_waiting = sum(download.is_waiting for download in state.downloads.values())
    must_wait = len(state.downloads) - n_waiting >= MAX_RUNNING
    if must_wait and n_waiting >= MAX_WAITING:
        raise TooManyRequests(f"{MAX_RUNNING} models are downloading, and {n_waiting} wait for that: try again later")
    download = Download(Model(name, event.preset, ModelState.DOWNLOADING), event.read_sources, event.asker, must_wait)
    state.catalog.add(download.model)
    state.downloads[name] = download
    if must_wait:
        log.info("the download of %s waits for %d others", name, n_waiting + MAX_RUNNING)
        download.is_answered = True
        state.publish(name, "model_status", {"status": ModelState.DOWNLOADING.value})
        state.emit(Finish(event.asker))
    else:
        _start(state, download)


def _start(state: State, download: Download) -> None:
    download.is_waiting = False
    spec = launch_spec(download.model.preset)
    state.emit(StartWorker(download, replace(spec, environ={**spec.environ, DOWNLOAD_ENV: "1"})))


def _start_next(state: State) -> None:
    """Start the download that waits longest, if one may run now."""
    waiting = [download for download in state.downloads.values() if download.is_waiting]
    if waiting and len(state.downloads) - len(waiting) < MAX_RUNNING:
        _start(state, waiting[0])


def forget_waiting(state: State) -> None:
    """Cancel the downloads that wait, because the router stops."""
    for download in [download for download in state.downloads.values() if download.is_waiting]:
        _end_waiting(state, download)


def _end_waiting(state: State, download: Download) -> None:
    del state.downloads[download.model.name]
    download.is_cancelled = True
    _end(state, download, "cancelled")


def on_started(state: State, event: WorkerStarted) -> None:
    """Publish the start and answer the command."""
    download = event.process
    assert isinstance(download, Download)
    log.info("downloading %s", download.model.name)
    if not download.is_answered:
        state.publish(download.model.name, "model_status", {"status": ModelState.DOWNLOADING.value})
        state.emit(Finish(download.asker))


def on_start_failed(state: State, event: StartFailed) -> None:
    """Remove the entry and refuse the command."""
    download = event.process
    assert isinstance(download, Download)
    del state.downloads[download.model.name]
    failure = f"failed to spawn a download: {event.reason}"
    if download.is_answered:
        _end(state, download, failure)
    else:
        state.catalog.remove(download.model)
        download.is_gone = True
        state.emit(Refuse(download.asker, ServerFault(failure)))
    _start_next(state)


def on_reported(state: State, event: WorkerReported) -> None:
    """Publish the progress of each file."""
    download, report = event.process, event.report
    assert isinstance(download, Download)
    if report.state == "failed":
        download.failure = str(report.payload.get("message", ""))
    if report.state != "downloading":
        return
    payload, progress = report.payload, download.model.progress
    progress[str(payload.get("url", ""))] = {"done": payload.get("downloaded", 0), "total": payload.get("total", 0)}
    state.publish(download.model.name, "download_progress", {"progress": dict(progress)})


def on_cancelled(state: State, event: DownloadCancelled) -> None:
    """Cancel a download, if there is one of this name."""
    if event.model in state.downloads:
        cancel(state, event.model, event.asker)
    else:
        state.emit(Finish(event.asker))


def cancel(state: State, name: str, asker: Command) -> None:
    """Kill the process of a download; the command is answered at its end."""
    download = state.downloads[name]
    if download.is_waiting:
        _end_waiting(state, download)
        state.emit(Finish(asker))
        return
    download.is_cancelled = True
    state.emit(KillWorker(download))
    state.exit_waits.append(ExitWait(asker, (download,)))


def on_exited(state: State, event: WorkerExited) -> None:
    """Read the sources again if the download succeeded; else publish why it failed."""
    download = event.process
    assert isinstance(download, Download)
    del state.downloads[download.model.name]
    _start_next(state)
    if not exit_code_of(event.returncode):
        download.model.transition_to(ModelState.DOWNLOADED)
        state.emit(ReadSourcesAgain(download))
        return
    why = download.failure or exit_description(event.returncode, event.last_lines)
    _end(state, download, "cancelled" if download.is_cancelled else why)


def on_sources_read(state: State, event: SourcesRead) -> None:
    """Publish the end of a download."""
    name = event.download.model.name
    if event.failure:
        log.error("the sources cannot be read after the download of %s: %s", name, event.failure)
    _end(state, event.download, "")


def _end(state: State, download: Download, failure: str) -> None:
    name = download.model.name
    state.catalog.remove(download.model)
    if failure:
        log.warning("download of %s failed: %s", name, failure)
        state.publish(name, "download_failed", {"error": failure})
    else:
        log.info("download of %s has finished", name)
        state.publish(name, "download_finished")
    download.is_gone = True
