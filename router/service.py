"""Run the router: listen, start the models to be loaded at startup, handle signals, and shut down.

`command` calls it with the settings. It is a separate module because its imports take time, and serving one model or
printing the help text does not need them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from llama_corral.common.base.daemon_threads import use_daemon_threads
from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.open_files import raise_limit
from llama_corral.common.base.private_directory import PrivateDirectory
from llama_corral.common.base.prompt_directory import DIRECTORY_ENV as PROMPTS_ENV
from llama_corral.common.base.prompt_directory import prompts_directory
from llama_corral.common.base.systemd import NOTIFY_ENV, READY, STOPPING, notify, reloading
from llama_corral.common.web.application import RUNNING
from llama_corral.common.web.auth import KEYS_ENV, ApiKeys
from llama_corral.common.web.listen import listen
from llama_corral.common.web.response_store import DIRECTORY_ENV, ResponseStore
from llama_corral.common.web.shutdown import ShutdownRequest, drain
from llama_corral.common.web.vertex import VERTEX_ENV, read_vertex
from llama_corral.presets import merge
from llama_corral.presets.options.option import Option
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.options.table import VARIABLES
from llama_corral.presets.preset import Preset
from llama_corral.presets.sources import PresetReader

from . import app
from .library import ReadPresets
from .lifecycle.lifecycle import FAKE_LOAD_DELAY, FAKE_TIMING_ENV, Lifecycle
from .lifecycle.watchdog import effective_timeout
from .memory.budget import memory_budget_of
from .models.tasks import Tasks
from .placement.snapshot import rules_of
from .process.external import CombinedLauncher, health_check_interval
from .process.zygote import best_launcher
from .proxy.proxy import find_model
from .source_stamps import source_places
from .watcher import Reload, SourceWatcher, reload_presets

log = logging.getLogger("corral.router")

KEEP_S = 2.0
"""Seconds between looks at the directories that workers use."""
NO_MODELS = (
    "no model found: name a presets file (--models-preset FILE), a directory of GGUF files (--models-dir DIR) "
    "or one model (-m FILE, -hf USER/REPO), or try the built-in ones (--demo)"
)


def run_router(settings: Settings, given: merge.Layer, environ: Mapping[str, str], *, is_downloaded: bool) -> int:
    gc.freeze()  # what was imported lives until the end
    gc.enable()
    raise_limit()
    work = serve(settings, given, environ, is_downloaded=is_downloaded)
    try:
        import uvloop  # not on every platform
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def serve(
    settings: Settings, given: merge.Layer, environ: Mapping[str, str], *, is_downloaded: bool = False
) -> int:
    """Listen, then load the models to be loaded at startup, then wait for a signal. Return the exit code.

    `is_downloaded`: True if the presets file was downloaded; then its presets may not run commands.
    """
    use_daemon_threads()
    load = PresetReader(settings, given, environ, may_run_commands=not is_downloaded)
    watcher = SourceWatcher(source_places(settings, environ), load.files)
    presets = load()
    api_keys = ApiKeys(settings)
    read_presets = functools.partial(_read_again, api_keys, load)
    if not presets:
        log.warning(NO_MODELS)
    is_slowed = FAKE_TIMING_ENV in environ
    for_workers = _worker_environ(environ)
    memory_budget = memory_budget_of(settings, for_workers)
    stop = ShutdownRequest()
    stop.on_signals()  # until here a signal ends the process at once; from here on there is something to clean up
    responses, prompts = ResponseStore(), prompts_directory("", {**environ, PROMPTS_ENV: ""})
    shared = {DIRECTORY_ENV: responses.open(), PROMPTS_ENV: prompts.open(), **({KEYS_ENV: "1"} if api_keys else {})}
    patience = effective_timeout(settings.router.worker_timeout)
    lifecycle = Lifecycle(
        presets,
        CombinedLauncher(
            best_launcher({**for_workers, **shared}), for_workers, ask_every=health_check_interval(patience)
        ),
        models_max=settings.router.models_max,
        autoload=settings.router.models_autoload,
        load_delay=FAKE_LOAD_DELAY if is_slowed else 0.0,
        memory_budget=memory_budget,
        rules=rules_of(settings),
        worker_timeout=patience,
    )
    if presets and (default := settings.router.default_model) and find_model(lifecycle, default) is None:
        log.warning("--default-model %s: no model has this name or alias now", default)
    vertex = read_vertex(environ)
    if vertex is not None:
        settings = vertex.listening(settings)
    application = app.build(
        settings,
        lifecycle,
        read_presets,
        fake_timing=is_slowed,
        vertex=vertex,
        responses=responses,
        environ=environ,
        api_keys=api_keys,
    )
    _handle_user_signals(application[app.DESCRIBE_STATE])
    hurrying = asyncio.create_task(_force_stop_on_second_signal(stop, lifecycle))
    try:
        async with listen(application, settings) as listening:
            log.info("router mode: %d models, at most %s in memory", len(presets), settings.router.models_max or "all")
            notify(environ, READY)
            reload = functools.partial(reload_presets, read_presets, lifecycle)
            watching = asyncio.create_task(watcher.watch(reload))
            keeping = asyncio.create_task(_keep_directories(responses, prompts))
            try:
                with _reload_on_sighup(reload, environ):
                    code = await _run_until(stop.requested, lifecycle.start(is_strict=settings.router.presets_strict))
            finally:
                watching.cancel()
                keeping.cancel()
            log.info("stopping")
            notify(environ, STOPPING)
            listening.stop_accepting()
            lifecycle.stop_serving()
            await drain(application[RUNNING], stop, settings.http.drain_timeout, application[app.ABORT_RESPONSES])
            return code
    finally:
        prompts.close()  # before the workers end, so that they do not write prompts to it
        await lifecycle.close()
        hurrying.cancel()


async def _keep_directories(*shared: ResponseStore | PrivateDirectory) -> None:
    """Create the directories that workers use again if they are deleted, for example to tidy up /tmp."""
    while True:
        await asyncio.sleep(KEEP_S)
        for directory in shared:
            try:
                directory.open()
            except OSError as error:
                log.error("%s", error)


def _read_again(api_keys: ApiKeys, load: ReadPresets) -> Mapping[str, Preset]:
    """Read the API keys and all sources again. Raises ConfigError for the sources; the new keys count even then."""
    api_keys.read_again()
    return load()


async def _force_stop_on_second_signal(stop: ShutdownRequest, lifecycle: Lifecycle) -> None:
    """Kill the workers at a second signal, if they are already stopping."""
    await stop.forced.wait()
    if lifecycle.is_closing:
        await lifecycle.close()


def _handle_user_signals(describe: Callable[[], str]) -> None:
    """Write the router's whole state into the log on SIGUSR1; ignore SIGUSR2."""
    if hasattr(signal, "SIGUSR1"):
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: log.info("SIGUSR1: the state of the router\n%s", describe()))
        loop.add_signal_handler(signal.SIGUSR2, lambda: log.info("SIGUSR2 is ignored: SIGUSR1 logs the state"))


@contextlib.contextmanager
def _reload_on_sighup(reload: Reload, environ: Mapping[str, str]) -> Iterator[None]:
    """Read the sources again on SIGHUP. On a terminal, SIGHUP keeps its default effect: it ends the router."""
    if not hasattr(signal, "SIGHUP") or os.isatty(0):
        yield
        return
    tasks, loop = Tasks(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.spawn(_reload_and_notify(reload, environ)))
    try:
        yield
    finally:
        tasks.cancel()
        loop.add_signal_handler(signal.SIGHUP, lambda: log.info("SIGHUP is ignored: the router is stopping"))


async def _reload_and_notify(reload: Reload, environ: Mapping[str, str]) -> None:
    notify(environ, reloading())
    try:
        await reload()
    finally:
        notify(environ, READY)


def _worker_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for workers: without API keys, certificates and other options of the router.

    A worker with an API key would refuse the requests that the router forwards.
    """
    own = {
        variable
        for variable, spelling in VARIABLES.items()
        if isinstance(spelling.entry, Option) and spelling.entry.router_own
    }
    own.add(NOTIFY_ENV)
    return {name: value for name, value in environ.items() if name not in own and not name.startswith(VERTEX_ENV)}


async def _run_until(stop: asyncio.Event, start: Coroutine[Any, Any, None]) -> int:
    startup = asyncio.create_task(start)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((startup, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await startup  # raises the error of a model that was to be loaded at startup
            gc.freeze()  # these objects live until the end: the collector need not scan them
            await stopped
    except ApiError as error:
        log.error("a model could not be loaded at startup: %s", error.message)
        return 1
    finally:
        startup.cancel()
        stopped.cancel()
    return 0
