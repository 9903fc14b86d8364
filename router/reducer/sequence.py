"""What follows every event, always in the same order; the only place that decides what happens next.

1. Reloads: apply the presets when the workers that a reload stops have ended (`reloads`). Requests for a removed model
   whose name another model has now arrive again.
2. Requests: grant leases to waiting requests that a model can serve now. This comes before placement, so that a model
   that has just become ready is busy, and not idle, when victims are chosen.
3. Placement: carry out decisions of `placement.decide` for the queue and for explicit loads, until there is none.
4. Expiry: unload idle models whose `ttl` is over.
5. Loads without a request: load one model that is kept warm, or due to be loaded again, if there is room and no request
   waits.
6. Answers: finish the commands that wait for the exit of processes.
7. Timer: set the one timer for the moment at which time alone changes one of these answers.

When the router is stopping, it does only the first two steps and the answers.
"""

from __future__ import annotations

import logging
import math

from llama_corral.common.base.errors import NoCapacity, NotFound, ServerFault

from ..placement import admission, keep_warm, placement, queue_order
from ..placement.placement import Decision, Refusal
from ..placement.snapshot import PlacementSnapshot
from ..placement.states import ModelState
from .commands import begin_waiting_loads
from .effects import REVIEW, CancelTimer, Finish, Refuse, SetTimer, Timer, TimerKind
from .reloads import advance
from .requests import admit_again, grant
from .state import State
from .workers import start, start_claimed, start_queued, stop

RECHECK_S = 0.5
"""For memory that the next model of the queue waits for."""
WARM_RECHECK_S = 10.0
"""For memory that models to keep warm need: no request waits for it."""
MAX_DELAY_S = 3600.0
"""Longest timer: options allow times that are too long for some clocks."""

log = logging.getLogger("corral.router")


def follow_up(state: State, now: float) -> None:
    """Do what follows an event."""
    advance(state)
    admit_again(state, now)
    _grant_waiting(state, now)
    if not state.is_refusing:
        review_at = min(_place(state, now), _unload_expired(state, now), _load_without_request(state, now))
    else:
        review_at = math.inf
    _answer_exits(state)
    _set_timer(state, now, review_at)


# -- 2. requests -------------------------------------------------------------------------------------------------------


def _grant_waiting(state: State, now: float) -> None:
    """Grant leases to the waiting requests that their model can serve now."""
    if state.queue.is_empty:
        return
    for name in state.queue.models:
        model = state.catalog.find(name)
        if model is not None and model.takes_requests and model.instance is not None:
            most = admission.free_capacity(model.preset.policy, model.instance.requests)
            for waiter in state.queue.pop(name, most):
                grant(state, model, waiter.request, waiter.variant, now)


# -- 3. placement ------------------------------------------------------------------------------------------------------


def _place(state: State, now: float) -> float:
    """Carry out decisions until there is none; return when to decide again if no event comes before."""
    if state.queue.is_empty and not state.loads and not state.retries:
        return math.inf
    for retry in [retry for retry in state.retries if retry.evicted.is_gone]:
        state.retries.remove(retry)
        if state.load_delay:
            state.emit(SetTimer(Timer(TimerKind.START_DELAY, retry.model), state.load_delay))
        else:
            start_claimed(state, retry.model, now)
    for name in state.queue.models_without_entry:  # their instance ends: they wait for the next one
        model = state.catalog.find(name)
        if model is not None and not model.takes_requests and model.state is not ModelState.LOADING:
            state.queue.requeue(name)
    begin_waiting_loads(state)
    for model in state.outdated_in_queue():
        state.estimate(model)
    _answer_loads(state)
    while state.queue.has_queue or state.undecided_loads:
        snapshot = state.snapshot(now)
        decision = placement.decide(snapshot)
        if not decision:
            return _recheck_at(snapshot)
        _carry_out(state, decision, now)
        _answer_loads(state)
    return math.inf


def _carry_out(state: State, decision: Decision, now: float) -> None:
    """Carry out a decision for the queue: refuse requests, evict or pre-empt models, start one."""
    if decision.for_command is not None:
        _carry_out_load(state, decision, decision.for_command, now)
        return
    for refusal in decision.refuse:
        for waiter in state.queue.pop_all(refusal.model):
            state.emit(Refuse(waiter.request, _error_of(refusal)))
    for eviction in decision.evict:
        stop(state, state.catalog[eviction.model], eviction.reason)
    for eviction in decision.preempt:
        _preempt(state, eviction)
    if decision.start is not None:
        start_queued(state, state.catalog[decision.start], now)


def _carry_out_load(state: State, decision: Decision, name: str, now: float) -> None:
    """Carry out a decision for an explicit load: evict models for it, refuse it, or start its model."""
    load = next(load for load in state.undecided_loads if load.model.name == name)
    if decision.evict:
        evicted = [state.catalog[eviction.model] for eviction in decision.evict]
        load.evicted = tuple(model.instance for model in evicted if model.instance is not None)
        for model, eviction in zip(evicted, decision.evict, strict=True):
            stop(state, model, eviction.reason)
    for refusal in decision.refuse:
        state.loads.remove(load)
        state.emit(Refuse(load.asker, _error_of(refusal)))
    if decision.start is not None:
        start(state, load.model, now)
        load.instance = load.model.instance


def _error_of(refusal: Refusal) -> NoCapacity | ServerFault:
    if refusal.is_final:
        return NoCapacity(f"model '{refusal.model}' cannot be loaded: {refusal.reason}")
    return ServerFault(refusal.reason)


def _answer_loads(state: State) -> None:
    """Answer the explicit loads whose model was removed, made unavailable or started in the meantime."""
    for load in state.undecided_loads:
        if load.model not in state.catalog:
            state.emit(Refuse(load.asker, NotFound("model is not found")))
        elif error := load.model.unavailability:
            state.emit(Refuse(load.asker, error))
        elif load.model.state.is_down:
            continue
        else:
            state.emit(Finish(load.asker))
        state.loads.remove(load)


def _preempt(state: State, eviction: placement.Eviction) -> None:
    model = state.catalog[eviction.model]
    if model.instance is not None:
        log.info("name=%s accepts no new requests: %s", model.name, eviction.reason)
        model.instance.preemption_reason = eviction.reason
        state.queue.requeue(model.name)


def _recheck_at(snapshot: PlacementSnapshot) -> float:
    """Return when to decide again: no event reports passing time or freed memory (above all of devices)."""
    when = queue_order.next_check(snapshot)
    when = math.inf if when is None else when
    return min(when, snapshot.now + RECHECK_S) if placement.waits_for_space(snapshot) else when


# -- 4. expiry ---------------------------------------------------------------------------------------------------------


def _unload_expired(state: State, now: float) -> float:
    """Unload the models whose `ttl` is over; return when the next one's is over."""
    running = [model for model in state.catalog.running if model.may_expire]
    if not running:
        return math.inf
    snapshot = state.memory.expiry_snapshot(running, now)
    for eviction in placement.expired(snapshot):
        model = state.catalog[eviction.model]
        model.is_unload_requested = True
        stop(state, model, eviction.reason)
    when = placement.next_expiry(snapshot)
    return math.inf if when is None else when


# -- 5. loads without a request ----------------------------------------------------------------------------------------


def _load_without_request(state: State, now: float) -> float:
    """Load the next model that needs no request, after estimating its memory; return when to look again."""
    if state.queue.has_queue or not any(model.needs_warm_load for model in state.catalog.unrequested):
        state.warming = None
        return math.inf
    if state.warming is not None and state.warming in state.estimates:
        return math.inf
    snapshot = state.snapshot(now)
    name = keep_warm.next_warm(snapshot)
    if name is None:
        state.warming = None
        when = keep_warm.next_check(snapshot)
        when = math.inf if when is None else when
        return min(when, now + WARM_RECHECK_S) if keep_warm.waits_for_space(snapshot) else when
    model = state.catalog[name]
    if state.warming is model:
        state.warming = None
        why = "to keep it warm" if model.preset.policy.keep_warm else "with its new preset"
        log.info("loading name=%s %s", name, why)
        start(state, model, now)
    else:
        state.warming = model
        state.estimate(model)
    return math.inf


# -- 6. answers --------------------------------------------------------------------------------------------------------


def _answer_exits(state: State) -> None:
    if not state.exit_waits:
        return
    for wait in [wait for wait in state.exit_waits if all(process.is_gone for process in wait.processes)]:
        state.exit_waits.remove(wait)
        state.emit(Finish(wait.asker))


# -- 7. timer ----------------------------------------------------------------------------------------------------------


def _set_timer(state: State, now: float, when: float) -> None:
    if when == math.inf:
        if state.review_at is not None:
            state.review_at = None
            state.emit(CancelTimer(REVIEW))
    elif when != state.review_at:
        state.review_at = when
        state.emit(SetTimer(REVIEW, min(when - now, MAX_DELAY_S)))
