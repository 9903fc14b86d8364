"""Serves one model over HTTP: listen (all requests get 503), wait for the loaded engine, report ready, serve, drain.

`main` imports it while the model already loads, because this module imports the HTTP server and all dialects.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from llama_corral.common.base.systemd import READY, STOPPING, notify
from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.common.web.access_log import AccessLog, WorkerAccessLog
from llama_corral.common.web.application import RUNNING
from llama_corral.common.web.listen import listen
from llama_corral.common.web.shutdown import ShutdownRequest, drain
from llama_corral.common.web.vertex import read_vertex
from llama_corral.presets.options.settings import Settings

from .api.monitoring import model_entry
from .api.serving import WorkerContext
from .app import build
from .chat.template.template import TemplateError
from .engine.runner import Engine, LoadError
from .heartbeat import send_heartbeats
from .lifeline import Lifeline, exit_at_once

if TYPE_CHECKING:
    from llama_corral.common.base.private_directory import PrivateDirectory

log = logging.getLogger("corral.worker")

OK = 0
TIDY_AFTER_S = 1.0
"""Delay of the garbage collection after a load: it takes some milliseconds and must not delay the first request."""


class Server:
    """The HTTP server of one worker process. `loading` returns the loaded engine."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        lifeline: Lifeline,
        disk: PrivateDirectory,
        media_marker: str,
    ) -> None:
        """Build the application. Raises ConfigError if an option of the HTTP server is invalid."""
        self._environ = environ
        self._lifeline = lifeline
        self._disk = disk
        vertex = read_vertex(environ)
        self._settings = settings if vertex is None else vertex.listening(settings)
        self._worker = WorkerContext(self._settings, environ, media_marker=media_marker)
        self._application = build(self._worker, vertex)

    async def run(self, loading: asyncio.Task[Engine], stop: ShutdownRequest) -> int:
        """Serve until a stop request and return the exit code. Raises the error of a failed load, and ConfigError."""
        engine: Engine | None = None
        beating = asyncio.create_task(send_heartbeats(self._lifeline, self._worker))
        access_log = WorkerAccessLog if self._lifeline.has_router else AccessLog
        async with listen(self._application, self._settings, access_log=access_log) as listening:
            completing = asyncio.create_task(self._complete(loading))
            asked = asyncio.create_task(stop.requested.wait())
            await asyncio.wait({completing, asked}, return_when=asyncio.FIRST_COMPLETED)
            if completing.done():
                engine = completing.result()
                notify(self._environ, READY)
                await asked
                notify(self._environ, STOPPING)
                listening.stop_accepting()
                close_engine = partial(engine.close, stop.reason)
                await drain(self._application[RUNNING], stop, self._settings.http.drain_timeout, close_engine)
        if engine is None:  # stopped while it was loading; it may have been loaded since
            exit_at_once(OK)
        await engine.close()
        self._disk.close()
        beating.cancel()
        log.info("stopped")
        return OK

    async def _complete(self, loading: asyncio.Task[Engine]) -> Engine:
        """Wait for the loaded engine, let the handlers use it, and report ready."""
        engine, worker = await loading, self._worker
        async with engine.use() as loaded:
            try:
                await asyncio.to_thread(worker.on_model_loaded, engine, loaded)  # a template may take seconds
            except TemplateError as error:
                raise LoadError(str(error)) from None
        asyncio.get_running_loop().call_later(TIDY_AFTER_S, _tidy)
        self._lifeline.report(WorkerReport("ready", model_entry(worker), engine.memory_usage))
        log.info("model %s is ready: %d slots of %d tokens", worker.name, worker.info.n_slots, worker.info.n_ctx)
        return engine


def _tidy() -> None:
    gc.collect()
    gc.freeze()  # these objects live as long as the process: exclude them from later collections
