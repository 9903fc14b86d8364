"""Handle the requests for models: grant their leases, let them wait, and release what they hold.

A handler refuses its request by raising ApiError. Waiting requests are served in `sequence`, which calls `grant`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llama_corral.common.base.errors import ApiError, InvalidRequest, NotSupported, ServerFault, Unavailable

from ..models.backoff import NO_FAILURES
from ..models.model import Instance, Model, is_same_worker
from ..models.queue import Command, Lease, LeaseRequest, Waiter
from ..placement import admission, queue_order
from ..placement.admission import Load
from ..placement.states import ModelState
from .effects import EstimateMemory, Grant, Refuse
from .events import ClientLeft, LeaseReleased, MemoryEstimated, ProgramAnswered, RequestArrived
from .state import State
from .workers import stop

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset

log = logging.getLogger("corral.router")


def on_arrived(state: State, event: RequestArrived) -> None:
    """Estimate the model's memory if it does not run; else admit the request. Raises ApiError."""
    _estimate_or_admit(state, event.asker, event.now)


def _estimate_or_admit(state: State, request: LeaseRequest, now: float) -> None:
    model = state.catalog.find(request.model)
    can_load = model is not None and not state.is_refusing and not model.fault
    if model is not None and can_load and (model.state.is_down or model in state.estimates):
        state.estimate(model).append(request)
    else:
        _admit(state, request, now)


def admit_again(state: State, now: float) -> None:
    """Admit the requests whose model was removed, and whose name belongs to another model now."""
    while state.to_admit_again:
        request = state.to_admit_again.pop(0)
        try:
            _estimate_or_admit(state, request, now)
        except ApiError as error:
            state.emit(Refuse(request, error))


def on_estimated(state: State, event: MemoryEstimated) -> None:
    """Record a model's memory, and admit the requests that waited for this.

    If the preset has changed meanwhile, estimate again. If the model was removed, and perhaps another one has its name
    now, the requests start again.
    """
    model = event.model
    can_load = model in state.catalog and not model.fault
    if can_load and not is_same_worker(event.preset, model.preset):
        state.emit(EstimateMemory(model, model.preset))
        return
    model.is_need_outdated = False
    state.memory.record_estimate(model, event.need)
    proceed = _admit if model in state.catalog else _estimate_or_admit
    for request in state.estimates.pop(model, []):
        try:
            proceed(state, request, event.now)
        except ApiError as error:
            state.emit(Refuse(request, error))


def requested(state: State, name: str) -> Model:
    """Return the model that a request names. Raises ApiError."""
    if not name:
        raise InvalidRequest("model name is missing from the request")
    if state.is_refusing:
        raise Unavailable("the router is shutting down")
    model = state.catalog.find(name)
    if model is None:
        raise InvalidRequest(f"model '{name}' not found")
    if error := model.unavailability:
        raise error
    return model


def _admit(state: State, request: LeaseRequest, now: float) -> None:
    """Grant a lease, or let the request wait. Raises ApiError."""
    model, variant = requested(state, request.model), state.catalog.variant(request.model)
    if (_admit_to_load if request.may_load else _admit_if_loaded)(model, request, now):
        grant(state, model, request, variant, now)
    else:
        _wait(state, model, request, variant, now)


def _admit_if_loaded(model: Model, request: LeaseRequest, now: float) -> bool:
    """Return True if the request is served now, without loading the model. Raises InvalidRequest unless it runs.

    A worker that is still loading answers with 503 itself. If the model's concurrency limit is reached, the request
    waits. A draining instance grants no further leases, so the request is refused then.
    """
    if not model.state.is_running or model.state is ModelState.STOPPING:
        raise InvalidRequest("model is not loaded")
    if _has_capacity(model, request):
        return True
    if model.instance is not None and model.instance.is_draining:
        raise InvalidRequest("model is not loaded")
    return False


def _admit_to_load(model: Model, request: LeaseRequest, now: float) -> bool:
    """Return True if the request is served now; False: it waits, and the model is loaded if necessary."""
    if model.takes_requests and _has_capacity(model, request):
        return True
    if model.state in (ModelState.DOWNLOADING, ModelState.DOWNLOADED):
        raise InvalidRequest(f"model name={model.name} is not running")
    if error := model.refusal(now):
        raise error
    return False


def _has_capacity(model: Model, request: LeaseRequest) -> bool:
    """Return True if one more request may use the model.

    Waiting requests are served as soon as there is capacity, so no newer request is served before them.
    """
    assert model.instance is not None
    return not request.touch or admission.free_capacity(model.preset.policy, model.instance.requests) != 0


def _wait(state: State, model: Model, request: LeaseRequest, variant: Preset | None, now: float) -> None:
    """Let the request wait, with an entry in the queue unless the model is there or loads already."""
    in_use = model.instance.requests if model.instance else 0
    load = Load(in_use, state.queue.count(model.name), state.queue.count_all())
    if error := admission.queue_refusal(model.name, model.preset.policy, load, state.rules.max_queue):
        raise error
    is_loading = model.state is ModelState.LOADING
    waiter = Waiter(
        request,
        now,
        is_queued=not (is_loading or model.takes_requests),
        saw_start=is_loading or not request.may_load,
        variant=variant,
    )
    state.queue.add(model.name, waiter)
    log.debug("name=%s: a request waits, %d in all", model.name, state.queue.count(model.name))


def grant(state: State, model: Model, request: LeaseRequest, variant: Preset | None, now: float) -> None:
    """Give the request a lease on the instance that runs."""
    instance = model.instance
    assert instance is not None
    assert instance.worker is not None
    instance.leases += 1
    instance.requests += request.touch
    if request.touch:
        model.last_used = now
    if request.retention is not None and not model.preset.pin:
        instance.requested_retention = request.retention
    lease = Lease(model.name, instance.worker.endpoint, instance, variant or model.preset, request.touch)
    state.leases[request] = lease
    state.emit(Grant(request, lease))


def on_released(state: State, event: LeaseReleased) -> None:
    """Take a lease back; a model that was only finishing its requests stops after the last one."""
    if event.asker in state.leases:
        _release(state, event.asker, event.now, is_answered=event.is_answered)


def _release(state: State, request: LeaseRequest, now: float, *, is_answered: bool) -> None:
    lease = state.leases.pop(request)
    instance = lease.instance
    assert isinstance(instance, Instance)
    instance.leases -= 1
    instance.requests -= lease.touch
    model = state.running(instance)
    if lease.touch:
        instance.idle_since = now
        if is_answered and model is not None and not instance.errors:
            model.backoff = NO_FAILURES
    if model is not None and instance.is_draining and not instance.leases:
        reason = instance.failure if instance.is_broken else instance.preemption_reason
        stop(state, model, reason or instance.retirement_reason)


def on_answered(state: State, event: ProgramAnswered) -> None:
    """Count the errors that an external program answers in a row; after too many it is stopped when it is idle.

    Its health check cannot show this. A refusal of one request (4xx) shows that the program works, 501 shows nothing.
    """
    instance, model = event.instance, state.running(event.instance)
    if model is None or model.preset.backend is None or instance.is_broken or event.status == NotSupported.status:
        return
    if event.status < ServerFault.status:
        instance.errors = 0
        return
    instance.errors += 1
    limit = model.preset.backend.max_errors
    log.warning("name=%s: the program answered %d, %d errors in a row", model.name, event.status, instance.errors)
    if limit and instance.errors >= limit:
        instance.failure = f"its last {instance.errors} answers were errors (HTTP {event.status})"
        instance.is_broken = True
        log.error("name=%s will be restarted: %s (restart-after-errors)", model.name, instance.failure)
        state.queue.requeue(model.name)


def on_left(state: State, event: ClientLeft) -> None:
    """Release a request's lease, or give up its place in the queue; drop a command."""
    if isinstance(event.asker, Command):
        state.loads = [load for load in state.loads if load.asker is not event.asker]
        state.exit_waits = [wait for wait in state.exit_waits if wait.asker is not event.asker]
    elif event.asker in state.leases:  # granted just when its client disconnected
        _release(state, event.asker, event.now, is_answered=False)
        _cancel_preemptions(state, event.now)
    else:
        for requests in state.estimates.values():
            if event.asker in requests:
                requests.remove(event.asker)
        state.queue.remove(event.asker)
        _cancel_preemptions(state, event.now)


def _cancel_preemptions(state: State, now: float) -> None:
    """Cancel all pre-emptions if no overdue model is left; these models accept requests again."""
    preempted = [model for model in state.catalog if model.instance and model.instance.preemption_reason]
    preempted = [model for model in preempted if model.state.is_ready]
    if not preempted or queue_order.is_any_overdue(state.snapshot(now)):
        return
    for model in preempted:
        assert model.instance is not None
        model.instance.preemption_reason = ""
        log.info("name=%s accepts requests again: no model waits for it to be evicted any more", model.name)
