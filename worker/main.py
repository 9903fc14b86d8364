"""Runs a worker process, one model with one HTTP server, from its command line to its exit code.

`run` is called by `__main__`, and by the zygote in a fork. It connects to the router if there is one, reads the
settings, resolves the files and loads the model. In the meantime it imports `serve`, which does the rest: this module
imports only what a load needs, so that the load begins early.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_corral.common.base import logs
from llama_corral.common.base.daemon_threads import use_daemon_threads
from llama_corral.common.base.errors import ConfigError, ModelFilesError
from llama_corral.common.base.open_files import raise_limit
from llama_corral.common.base.private_directory import PrivateDirectory
from llama_corral.common.base.prompt_directory import prompts_directory
from llama_corral.common.base.worker_reports import DOWNLOAD_ENV, WorkerReport
from llama_corral.common.hub.download import DownloadProgress
from llama_corral.common.hub.gguf_header import refuse_large_header
from llama_corral.common.hub.gguf_names import shards_of
from llama_corral.common.hub.resolve import ModelFiles, resolve_files
from llama_corral.common.web.shutdown import ShutdownRequest
from llama_corral.presets.merge import settings_from, unused_option_notices
from llama_corral.presets.options.settings import Settings

from .download import download
from .engine.llama.devices import describe_devices
from .engine.runner import Engine, LoadError
from .lifeline import Lifeline, exit_at_once

if sys.platform == "win32":
    from asyncio import run as run_loop
else:
    from uvloop import run as run_loop

if TYPE_CHECKING:
    from .serve import Server

log = logging.getLogger("corral.worker")

OK, FAILED = 0, 1
STAGES = ["download", "text_model"]
SHORT_SWITCH_S = 0.0001
"""Longest time in seconds that a thread keeps the GIL while another one waits for it, during imports in parallel with a
load. The load needs the GIL briefly for each line of llama.cpp's log; with the default of 0.005 s the waits add up.
"""
UserError = (ConfigError, ModelFilesError, LoadError)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the worker and return the process exit code. Must be called on the main thread."""
    lifeline = Lifeline(environ)
    lifeline.start()
    try:
        settings = settings_from(argv, environ)
        logs.set_up(settings, relayed=lifeline.has_router)
        if settings.program.list_devices:
            print(describe_devices())
            return OK
        if DOWNLOAD_ENV in environ:
            gc.enable()
            return download(settings, environ, lifeline)
        for line in unused_option_notices(settings):
            log.info("%s", line)
        raise_limit()
        return run_loop(_run_worker(settings, environ, lifeline))
    except UserError as error:
        return _failed(error, lifeline)


def _failed(error: Exception, lifeline: Lifeline) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    lifeline.report(WorkerReport("failed", {"message": str(error)}))
    return FAILED


async def _run_worker(settings: Settings, environ: Mapping[str, str], lifeline: Lifeline) -> int:
    use_daemon_threads()
    stop = _asked_to_stop(lifeline)
    disk = prompts_directory(settings.context.cache_disk_dir, environ)
    media_marker = environ.get("LLAMA_MEDIA_MARKER") or f"<__media_{secrets.token_hex(16)}__>"
    loading = asyncio.create_task(_load(settings, environ, lifeline, media_marker, disk))
    server = await asyncio.to_thread(_import_server)
    try:
        return await server(settings, environ, lifeline, disk, media_marker).run(loading, stop)
    except UserError as error:
        if not loading.done():
            exit_at_once(_failed(error, lifeline))
        loading.exception()  # marks it as retrieved
        raise


def _import_server() -> type[Server]:
    """Import the HTTP server and all dialects. Then turn on garbage collection, which only delays imports."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SHORT_SWITCH_S)
    try:
        from .serve import Server
    finally:
        sys.setswitchinterval(interval)
    gc.freeze()
    gc.enable()
    return Server


def _asked_to_stop(lifeline: Lifeline) -> ShutdownRequest:
    """Return the shutdown request, which the router, SIGTERM or SIGINT sets."""
    stop, loop = ShutdownRequest(), asyncio.get_running_loop()
    stop.on_signals()

    def on_exit(reason: str) -> None:
        loop.call_soon_threadsafe(stop.request, f"the model was unloaded: {reason}" if reason else "")

    lifeline.on_exit(on_exit)
    return stop


async def _load(
    settings: Settings, environ: Mapping[str, str], lifeline: Lifeline, media_marker: str, disk: PrivateDirectory
) -> Engine:
    files = await asyncio.to_thread(_checked_files, settings, environ, lifeline)
    log.info("loading model %s", files.model)
    engine = Engine(settings, files, lifeline.report, media_marker, disk)
    await engine.load(is_idle=False)  # the HTTP server may still be starting, and uses the engine then
    return engine


def _checked_files(settings: Settings, environ: Mapping[str, str], lifeline: Lifeline) -> ModelFiles:
    """Find or download the model's files. Raise ModelFilesError, also for a file whose header is too large to load."""
    files = resolve_files(settings, environ, _DownloadReporter(lifeline).report)
    adapters = (
        Path(path) for path in (*settings.main_model.lora, *(path for path, _ in settings.main_model.lora_scaled))
    )
    for first in (files.model, files.mmproj, files.draft, *adapters):
        for path in shards_of(first) if first else ():
            refuse_large_header(path)
    return files


class _DownloadReporter:
    """Reports download progress to the router and the log; called from the download threads."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline
        self._logged: dict[str, int] = {}

    def report(self, progress: DownloadProgress) -> None:
        value = progress.downloaded / progress.total if progress.total else 0.0
        self._lifeline.report(WorkerReport("loading", {"stages": STAGES, "current": "download", "value": value}))
        tenth = int(value * 10)
        if self._logged.get(progress.url) != tenth:
            self._logged[progress.url] = tenth
            log.info("downloading %s: %d %%", progress.url, tenth * 10)
