"""Start and stop workers, and handle their starts, reports and exits.

Each change of a model's state is published. What follows for other models is decided in `sequence` afterwards.
"""

from __future__ import annotations

import logging
from typing import Any

from llama_corral.common.base.errors import ApiError, InvalidRequest, ModelNotFound, ServerFault
from llama_corral.common.base.worker_reports import WorkerReport

from ..models.model import Instance, Model, exit_code_of, failure_reason, launch_spec, ran_out_of_memory
from ..placement import placement
from ..placement.states import IllegalModelTransition, ModelState
from .effects import (
    CancelTimer,
    Finish,
    KillWorker,
    RecordHeartbeat,
    Refuse,
    SetTimer,
    StartWorker,
    StopWorker,
    Timer,
    TimerKind,
)
from .events import StartFailed, WorkerExited, WorkerHung, WorkerReported, WorkerStarted
from .state import Load, Retry, State

log = logging.getLogger("corral.router")


# -- starting ----------------------------------------------------------------------------------------------------------


def start(state: State, model: Model, now: float) -> None:
    """Start a worker for the model: its memory and its place count from now on."""
    model.last_used = now
    model.is_unload_requested = model.is_reload_due = False
    state.queue.started(model.name)
    model.transition_to(ModelState.LOADING)
    model.exit_code, model.failure, model.last_lines = 0, "", ()
    model.info, model.progress, model.measured = {}, {}, None
    instance = Instance(model.name, started=now)
    state.catalog.set_instance(model, instance)
    state.memory.reserve(model, state.catalog)
    state.emit(StartWorker(instance, launch_spec(model.preset)))


def start_queued(state: State, model: Model, now: float) -> None:
    """Start the model for the queue, after the delay if there is one."""
    state.queue.claim(model.name)
    if state.load_delay:
        state.emit(SetTimer(Timer(TimerKind.START_DELAY, model), state.load_delay))
    else:
        start(state, model, now)


def start_claimed(state: State, model: Model, now: float) -> None:
    """Start a model whose place was claimed some time ago, if there is still room for it."""
    if not state.queue.is_claimed(model.name) or not model.state.is_down or state.is_refusing:
        return  # no request waits any more, or it was started explicitly
    if not state.reloads and placement.may_start(state.snapshot(now), model.name):
        start(state, model, now)
    else:
        state.queue.unclaim(model.name)


def on_started(state: State, event: WorkerStarted) -> None:
    """Show the new process, and answer the command that loads this model."""
    instance = event.process
    assert isinstance(instance, Instance)
    model = state.running(instance)
    if model is None:
        return
    instance.worker, instance.kernel_oom_kills = event.worker, event.kernel_oom_kills
    model.command_line = event.worker.arguments
    log.info("starting name=%s: %s", model.name, " ".join(event.worker.arguments))
    state.publish(model.name, "model_status", {"status": ModelState.LOADING.value})
    for load in _loads_of(state, instance):
        state.emit(Finish(load.asker))


def on_start_failed(state: State, event: StartFailed) -> None:
    """Record that the model has failed, and refuse its requests and the command that loads it."""
    instance = event.process
    assert isinstance(instance, Instance)
    model = state.running(instance)
    if model is None:
        return
    state.catalog.set_instance(model, None)
    _finish_exit(state, model, 1, f"failed to spawn server instance: {event.reason}")
    model.record_failure(event.now, None)
    _refuse_waiters(state, model, event.now)
    for load in _loads_of(state, instance):
        state.emit(Refuse(load.asker, ServerFault(model.failure)))
    instance.is_gone = True


def _loads_of(state: State, instance: Instance) -> list[Load]:
    """Remove and return the explicit loads that wait for the start of this instance."""
    loads = [load for load in state.loads if load.instance is instance]
    state.loads = [load for load in state.loads if load.instance is not instance]
    return loads


# -- stopping ----------------------------------------------------------------------------------------------------------


def stop(state: State, model: Model, reason: str) -> None:
    """Ask the worker to exit, and kill it after the preset's `stop_timeout` (seconds).

    A worker that is still loading is killed immediately, because it cannot read the request.
    """
    instance = model.instance
    if instance is None or model.state is ModelState.STOPPING:
        return
    log.info("stopping name=%s: %s", model.name, reason)
    instance.displayed_state, instance.stop_reason = model.state, reason
    model.transition_to(ModelState.STOPPING)
    if instance.displayed_state is ModelState.LOADING:
        state.emit(KillWorker(instance))
        return
    state.emit(StopWorker(instance, reason))
    state.emit(SetTimer(Timer(TimerKind.STOP_TIMEOUT, instance), model.preset.stop_timeout))


def on_stop_timeout(state: State, instance: Instance) -> None:
    """Kill a worker that did not exit in time."""
    if (model := state.running(instance)) is not None:
        log.warning("force-killing name=%s: it did not exit within %gs", model.name, model.preset.stop_timeout)
        state.emit(KillWorker(instance))


def on_hung(state: State, event: WorkerHung) -> None:
    """Kill a worker that the watchdog found hanging."""
    instance = event.instance
    if state.running(instance) is not None:
        instance.failure = f"it was killed because it hung: {event.reason} (--worker-timeout)"
        log.error("killing pid %s: %s", instance.pid, event.reason)
        state.emit(KillWorker(instance))


# -- reports -----------------------------------------------------------------------------------------------------------


def on_reported(state: State, event: WorkerReported) -> None:
    """Follow what a worker says of its state, unless it is stopping."""
    instance, report = event.process, event.report
    assert isinstance(instance, Instance)
    model = state.running(instance)
    if model is None:
        return
    if report.state == "failed":
        instance.failure = str(report.payload.get("message", "")) or "no reason given"
    elif model.state is ModelState.STOPPING:
        pass
    elif report.state == "alive":
        state.emit(RecordHeartbeat(instance, report.payload, is_program=model.preset.backend is not None))
    else:
        try:
            _apply_report(state, model, report)
        except IllegalModelTransition as error:
            log.warning("name=%s reported %s: %s", model.name, report.state, error)
            return
        state.memory.record_load(model, event.now)
        if model.state is ModelState.LOADED:
            instance.idle_since = event.now
            model.is_retried = False


def _apply_report(state: State, model: Model, report: WorkerReport) -> None:
    data: dict[str, Any] = {}
    new = _STATE_OF[report.state]
    if model.state is not new:
        model.transition_to(new)
    if new is ModelState.LOADING:
        model.progress = data["progress"] = report.payload
    elif new is ModelState.LOADED and report.payload:  # empty on waking up: the first report is still valid
        model.info = data["info"] = report.payload
    if report.memory is not None:
        model.measured = report.memory
    log.log(logging.DEBUG if new is ModelState.LOADING else logging.INFO, "name=%s is %s", model.name, new.value)
    state.publish(model.name, "status_change", {"status": new.value, **data})


_STATE_OF = {"loading": ModelState.LOADING, "ready": ModelState.LOADED, "sleeping": ModelState.SLEEPING}


# -- exits -------------------------------------------------------------------------------------------------------------


def on_exited(state: State, event: WorkerExited) -> None:
    """Record why the worker ended, and retry its load or refuse the requests that waited for it."""
    instance, returncode = event.process, event.returncode
    assert isinstance(instance, Instance)
    model = state.running(instance)
    if model is None:
        return
    state.emit(CancelTimer(Timer(TimerKind.STOP_TIMEOUT, instance)))
    state.catalog.set_instance(model, None)
    model.last_lines = event.last_lines
    instance.is_fault = instance.is_broken or (returncode != 0 and model.state is not ModelState.STOPPING)
    said = (event.last_lines, event.kernel_oom_kills)
    instance.ran_out_of_memory = ran_out_of_memory(instance, returncode, *said)
    instance.failure = failure_reason(instance, returncode, *said)
    is_replaced = instance.is_retiring and not instance.is_fault
    exit_code = 0 if is_replaced else exit_code_of(returncode) or int(instance.is_broken)
    _finish_exit(state, model, exit_code, instance.failure)
    state.memory.record_exit(event.now)
    if instance.is_retiring:
        _end_retirement(state, model)
        instance.is_gone = True
        return
    may_retry = instance.ran_out_of_memory and not (instance.idle_since or model.is_retried)
    model.is_retried = may_retry and _retry(state, model, event.now)
    if not model.is_retried:
        if instance.is_fault:
            model.record_failure(event.now, instance.idle_since or None)
        _refuse_waiters(state, model, event.now)
        refuse_unavailable(state, model)  # its files may be missing now
    instance.is_gone = True


def _end_retirement(state: State, model: Model) -> None:
    """Apply the current preset after the worker of an earlier one has ended, even if that one failed.

    The requests that waited for that worker wait for the next one.
    """
    model.is_retried = False
    state.queue.wait_for_next(model.name)
    for waiter in state.queue.pop_started(model.name):
        state.emit(Refuse(waiter.request, InvalidRequest("model is not loaded")))
    if state.catalog.finish_retirement(model):
        refuse_unavailable(state, model)
    else:
        refuse_removed(state, model)


def _finish_exit(state: State, model: Model, exit_code: int, failure: str) -> None:
    was_asked = model.state is ModelState.STOPPING
    model.transition_to(ModelState.FAILED if exit_code else ModelState.UNLOADED)
    model.exit_code, model.failure = exit_code, failure
    level = logging.ERROR if exit_code and not was_asked else logging.INFO
    log.log(level, "name=%s exited with code %d%s", model.name, exit_code, f": {failure}" if exit_code else "")
    state.publish(model.name, "status_change", {"status": ModelState.UNLOADED.value, "exit_code": exit_code})


def _retry(state: State, model: Model, now: float) -> bool:
    """Evict an idle model and load `model` once more after its load ran out of memory.

    Another program may have used the memory in the meantime. False: no request waits for the model any more, or no
    model can be evicted.
    """
    if state.is_refusing or not state.queue.count(model.name):
        return False
    name = placement.least_valuable_idle(state.snapshot(now), model.name)
    if name is None:
        return False
    evicted = state.catalog[name]
    assert evicted.instance is not None
    state.queue.retry(model.name)
    state.retries.append(Retry(model, evicted.instance))
    stop(state, evicted, f"idle, and {model.name} ran out of memory when it was loaded")
    return True


# -- refusing ----------------------------------------------------------------------------------------------------------


def _refuse_waiters(state: State, model: Model, now: float) -> None:
    """Refuse the requests that waited for an instance that ended or could not start.

    During the back-off refuse all waiting requests.
    """
    for waiter in state.queue.pop_started(model.name):
        state.emit(Refuse(waiter.request, _start_failure(model)))
    if model.refusal(now):
        for waiter in state.queue.pop_all(model.name):
            state.emit(Refuse(waiter.request, model.backoff.refusal(model.name, model.failure, now)))


def _start_failure(model: Model) -> ApiError:
    """Return the error for requests that waited for an instance that ended before it was ready."""
    if model.exit_code:
        return ServerFault(f"model name={model.name} failed to load: {model.failure}")
    return InvalidRequest(f"model name={model.name} is not running")


def refuse_removed(state: State, model: Model) -> None:
    """Refuse the requests that wait for a model that exists no more, unless another model has its name now."""
    for waiter in state.queue.pop_all(model.name):
        if state.catalog.find(waiter.request.model) is None:
            state.emit(Refuse(waiter.request, ModelNotFound(model.name)))
        else:
            state.to_admit_again.append(waiter.request)


def refuse_unavailable(state: State, model: Model) -> None:
    """Refuse the requests that wait for a model if its preset cannot be used."""
    if error := model.unavailability:
        for waiter in state.queue.pop_all(model.name):
            state.emit(Refuse(waiter.request, error))
