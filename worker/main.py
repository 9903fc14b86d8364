"""Runs a worker process, one model with one HTTP server, from its command line to its exit code.

`run` is called by `__main__`, and by the zygote in a fork. Its steps: connect to the router if there is one, read the
settings, listen (all requests get 503), resolve the files, load, report ready, serve until an exit request.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Mapping, Sequence

from llama_corral.common.base import logs
from llama_corral.common.base.errors import ConfigError, ModelFilesError
from llama_corral.common.base.private_directory import PrivateDirectory
from llama_corral.common.base.prompt_directory import prompts_directory
from llama_corral.common.base.systemd import READY, STOPPING, notify
from llama_corral.common.base.worker_reports import DOWNLOAD_ENV, WorkerReport
from llama_corral.common.hub.download import DownloadProgress
from llama_corral.common.hub.resolve import resolve_files
from llama_corral.common.web.application import RUNNING
from llama_corral.common.web.listen import listen
from llama_corral.common.web.shutdown import ShutdownRequest, drain
from llama_corral.common.web.vertex import read_vertex
from llama_corral.presets.merge import settings_from, unused_option_notices
from llama_corral.presets.options.settings import Settings

from .api.monitoring import model_entry
from .api.serving import WorkerContext
from .app import build
from .chat.template.template import TemplateError
from .download import download
from .engine.llama.devices import describe_devices
from .engine.runner import Engine, LoadError
from .heartbeat import send_heartbeats
from .lifeline import Lifeline

if sys.platform == "win32":
    from asyncio import run as run_loop
else:
    from uvloop import run as run_loop

log = logging.getLogger("corral.worker")

OK, FAILED = 0, 1
TIDY_AFTER_S = 1.0
"""Delay of the garbage collection after a load: it takes some milliseconds and must not delay the first request."""
STAGES = ["download", "text_model"]


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the worker and return the process exit code. Must be called on the main thread."""
    lifeline = Lifeline(environ)
    lifeline.start()
    try:
        settings = settings_from(argv, environ)
        logs.set_up(settings)
        if settings.program.list_devices:
            print(describe_devices())
            return OK
        if DOWNLOAD_ENV in environ:
            return download(settings, environ, lifeline)
        for line in unused_option_notices(settings):
            log.info("%s", line)
        return run_loop(_run_worker(settings, environ, lifeline))
    except (ConfigError, ModelFilesError, LoadError, TemplateError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        lifeline.report(WorkerReport("failed", {"message": str(error)}))
        return FAILED


async def _run_worker(settings: Settings, environ: Mapping[str, str], lifeline: Lifeline) -> int:
    stop = _asked_to_stop(lifeline)
    vertex = read_vertex(environ)
    if vertex is not None:
        settings = vertex.listening(settings)
    worker = WorkerContext(settings, environ)
    disk = prompts_directory(settings.context.cache_disk_dir, environ)
    application = build(worker, vertex)
    beating = asyncio.create_task(send_heartbeats(lifeline, worker))
    async with listen(application, settings) as listening:
        loading = asyncio.create_task(_load(worker, environ, lifeline, disk))
        asked = asyncio.create_task(stop.requested.wait())
        await asyncio.wait({loading, asked}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            engine = loading.result()
            notify(environ, READY)
            await asked
            notify(environ, STOPPING)
            listening.stop_accepting()
            await drain(application[RUNNING], stop, settings.http.drain_timeout, engine.close)
    if not loading.done():
        _exit_at_once()
    await engine.close()
    disk.close()
    beating.cancel()
    log.info("stopped")
    return OK


def _asked_to_stop(lifeline: Lifeline) -> ShutdownRequest:
    """Return the shutdown request, which the router, SIGTERM or SIGINT sets."""
    stop, loop = ShutdownRequest(), asyncio.get_running_loop()
    stop.on_signals()
    lifeline.on_exit(lambda: loop.call_soon_threadsafe(stop.request))
    return stop


def _exit_at_once() -> None:
    """Exit during a download or load. Neither can be interrupted, and neither needs a cleanup."""
    logging.shutdown()
    os._exit(OK)


async def _load(
    worker: WorkerContext, environ: Mapping[str, str], lifeline: Lifeline, disk: PrivateDirectory
) -> Engine:
    files = await asyncio.to_thread(resolve_files, worker.settings, environ, _DownloadReporter(lifeline).report)
    log.info("loading model %s", files.model)
    engine = Engine(worker.settings, files, lifeline.report, worker.media_marker, disk)
    await engine.load()
    async with engine.use() as loaded:
        worker.on_model_loaded(engine, loaded)
    asyncio.get_running_loop().call_later(TIDY_AFTER_S, _tidy)
    lifeline.report(WorkerReport("ready", model_entry(worker), engine.memory_usage))
    log.info("model %s is ready: %d slots of %d tokens", worker.name, worker.info.n_slots, worker.info.n_ctx)
    return engine


def _tidy() -> None:
    gc.collect()
    gc.freeze()  # these objects live as long as the process: exclude them from later collections


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
