"""Handle commands: load and unload models, end what uses a model's files, and stop the router.

A handler refuses its command by raising ApiError. A load is only recorded here; the sequence after the event lets
placement decide on it.
"""

from __future__ import annotations

import logging

from llama_corral.common.base.errors import InvalidRequest, NotFound, Unavailable

from ..models.queue import Command
from ..placement.snapshot import Retention
from ..placement.states import ModelState
from .downloads import cancel, forget_waiting
from .effects import EndEvents, Finish, KillWorker, Refuse, SetTimer, Timer, TimerKind
from .events import (
    ClosingRequested,
    IdleUnloadRequested,
    LoadRequested,
    RemovalDone,
    RemovalRequested,
    ServingStarted,
    ServingStopped,
    UnloadRequested,
)
from .requests import requested
from .state import ExitWait, Load, State
from .workers import stop

SHUTTING_DOWN = "the router is shutting down"

log = logging.getLogger("corral.router")


# -- loading -----------------------------------------------------------------------------------------------------------


def on_load(state: State, event: LoadRequested) -> None:
    """Record an explicit load, which begins with the delay or with the estimate of memory. Raises ApiError.

    If the model is stopping, the load begins when its worker has ended.
    """
    model = state.catalog.find(event.model)
    if model is None:
        raise NotFound("model is not found")
    if model.state.is_running and model.state is not ModelState.STOPPING:
        raise InvalidRequest("model is already running")
    if model.state is ModelState.DOWNLOADING:
        raise InvalidRequest("model is downloading")
    if error := model.unavailability:
        raise error
    if state.is_refusing:
        raise Unavailable(SHUTTING_DOWN)
    load = Load(event.asker, model)
    state.loads.append(load)
    if state.load_delay:
        state.emit(SetTimer(Timer(TimerKind.LOAD_DELAY, event.asker), state.load_delay))
    else:
        _begin_load(state, load)


def on_load_delay(state: State, asker: Command) -> None:
    """Continue an explicit load after its delay."""
    for load in state.loads:
        if load.asker is asker:
            _begin_load(state, load)


def begin_waiting_loads(state: State) -> None:
    """Begin the explicit loads that waited for the end of their model's previous worker."""
    for load in state.loads:
        if load.waits_for_exit and load.model.state is not ModelState.STOPPING:
            _begin_load(state, load)


def _begin_load(state: State, load: Load) -> None:
    load.waits_for_exit = load.model.state is ModelState.STOPPING
    load.has_begun = not load.waits_for_exit
    if load.has_begun and load.model.state.is_down and load.model in state.catalog:
        state.estimate(load.model)


# -- unloading ---------------------------------------------------------------------------------------------------------


def on_unload(state: State, event: UnloadRequested) -> None:
    """Stop a running model without waiting for its exit or its requests; cancel a download. Raises ApiError."""
    model = state.catalog.find(event.model)
    if model is None:
        raise InvalidRequest("model is not found")
    if model.name in state.downloads:
        cancel(state, model.name, event.asker)
        return
    if not model.state.is_running:
        raise InvalidRequest("model is not running")
    model.is_unload_requested = True
    stop(state, model, "unload was requested")
    state.emit(Finish(event.asker))


def on_idle_unload(state: State, event: IdleUnloadRequested) -> None:
    """Set a running model's `ttl` to 0, even if it is pinned: it is unloaded when it is idle. Raises ApiError."""
    model = requested(state, event.model)
    if model.instance is not None:
        model.instance.requested_retention = Retention(ttl=0.0)
    state.emit(Finish(event.asker))


def on_removal(state: State, event: RemovalRequested) -> None:
    """Stop a model's worker or cancel its download, if there is one."""
    model = state.catalog.find(event.model)
    if model is None:
        state.emit(Finish(event.asker))
    elif model.name in state.downloads:
        cancel(state, model.name, event.asker)
    else:
        model.is_unload_requested |= model.instance is not None
        stop(state, model, "its files will be removed")
        state.exit_waits.append(ExitWait(event.asker, () if model.instance is None else (model.instance,)))


def on_removed(state: State, event: RemovalDone) -> None:
    """Publish that a model's files were removed."""
    state.publish(event.model, "model_remove")


# -- starting and stopping the router ----------------------------------------------------------------------------------


def on_serving(state: State, event: ServingStarted) -> None:
    """Change nothing: the sequence after every event loads models to keep warm."""


def on_stop_serving(state: State, event: ServingStopped) -> None:
    """Refuse waiting and new requests, and end event streams; requests that have a lease continue."""
    if state.is_refusing:
        return
    state.is_refusing = True
    waiting = [waiter.request for waiter in state.queue.pop_everything()]
    waiting += [request for requests in state.estimates.values() for request in requests]
    for request in waiting:
        state.emit(Refuse(request, Unavailable(SHUTTING_DOWN)))
    for load in state.loads:
        if load.instance is None:
            state.emit(Refuse(load.asker, Unavailable(SHUTTING_DOWN)))
    state.loads = [load for load in state.loads if load.instance is not None]
    state.estimates.clear()
    state.retries.clear()
    state.warming = None
    state.emit(EndEvents())


def on_closing(state: State, event: ClosingRequested) -> None:
    """Stop all workers and cancel all downloads; the second time kill the workers."""
    instances = [model.instance for model in state.catalog if model.instance is not None]
    if state.is_closing:
        for instance in instances:
            state.emit(KillWorker(instance))
    else:
        on_stop_serving(state, ServingStopped(event.now))
        state.is_closing = True
        for model in state.catalog:
            stop(state, model, SHUTTING_DOWN)
    forget_waiting(state)
    downloads = list(state.downloads.values())
    for download in downloads:
        download.is_cancelled = True
        state.emit(KillWorker(download))
    state.exit_waits.append(ExitWait(event.asker, (*instances, *downloads)))
