"""Who uses which model: gives leases, has requests wait for theirs, and takes leases back.

Owned by `lifecycle`. It writes what an instance counts and when a model was used; what follows for other models is
the dispatcher's to find out, which it tells after every change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from llama_corral.common.base.errors import InvalidRequest

from ..models.backoff import NO_FAULTS
from ..models.model import Instance, Model
from ..models.queue import Lease, Waiter, WaitingRoom
from ..models.registry import Catalog
from ..placement import admission
from ..placement.admission import Crowd
from ..placement.snapshot import Stay
from ..placement.states import State
from .dispatcher import Dispatcher
from .supervisor import Supervisor

log = logging.getLogger("corral.router")


class Leases:
    def __init__(
        self,
        catalog: Catalog,
        waiting: WaitingRoom,
        dispatcher: Dispatcher,
        supervisor: Supervisor,
        clock: Callable[[], float],
        max_queue: int,
    ) -> None:
        """`max_queue`: requests that wait for whatever models; 0: no bound."""
        self._catalog = catalog
        self._waiting = waiting
        self._dispatcher = dispatcher
        self._supervisor = supervisor
        self._clock = clock
        self._max_queue = max_queue

    async def as_it_is(self, model: Model, touch: bool, stay: Stay | None) -> Lease:
        """Grant or queue without loading: raise InvalidRequest unless the model runs.

        A worker that still loads answers with 503 itself. Beyond the model's concurrency limit the request waits for
        a place; on an instance that is about to stop no place is given again, so the request is refused.
        """
        if not model.state.is_running or model.state is State.STOPPING:
            raise InvalidRequest("model is not loaded")
        if not _has_place(model, touch):
            if model.instance is not None and model.instance.is_leaving:
                raise InvalidRequest("model is not loaded")
            return await self._wait(model, touch, stay, may_load=False)
        return self._grant(model, touch, stay)

    async def when_ready(self, model: Model, touch: bool, stay: Stay | None) -> Lease:
        """Cancelling the wait gives the place in the queue back."""
        if model.takes_requests and _has_place(model, touch):
            return self._grant(model, touch, stay)
        if model.state in (State.DOWNLOADING, State.DOWNLOADED):
            raise InvalidRequest(f"model name={model.name} is not running")
        if error := model.refusal(self._clock()):
            raise error
        return await self._wait(model, touch, stay, may_load=True)

    def release(self, lease: Lease, *, is_answered: bool) -> None:
        """`is_answered`: to its end, which shows that the model works."""
        instance = lease.instance
        assert isinstance(instance, Instance)
        instance.leases -= 1
        instance.requests -= lease.touch
        model = self._catalog.find(lease.model)
        if lease.touch:
            instance.idle_since = self._clock()
            if is_answered and model is not None and model.instance is instance:
                model.faults = NO_FAULTS
        if model is not None and self._waiting.count(model.name):
            self.serve_waiters(model)
        if instance.leases > 0:
            return
        if instance.is_leaving and model is not None and model.instance is instance:
            self._supervisor.stop(model, instance.yields_to or "its preset changed or is gone")
        self._dispatcher.tick()
        if model is not None and model.stay.ttl is not None:
            self._dispatcher.unload_expired()

    def serve_waiters(self, model: Model) -> None:
        """Before any tick, so that a model that just came up is busy, and not idle, when a victim is sought."""
        if not model.takes_requests or model.instance is None:
            return
        most = admission.free(model.preset.manners, model.instance.requests)
        for waiter in self._waiting.take(model.name, most):
            waiter.grant.set_result(self._grant(model, waiter.touch, waiter.stay))

    async def _wait(self, model: Model, touch: bool, stay: Stay | None, *, may_load: bool) -> Lease:
        if error := self._refusal(model):
            raise error
        is_up = model.state is State.LOADING or model.takes_requests
        grant: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        saw_start = model.state is State.LOADING or not may_load
        waiter = Waiter(grant, touch, stay, self._clock(), is_queued=not is_up, saw_start=saw_start, may_load=may_load)
        self._waiting.join(model.name, waiter)
        log.debug("name=%s: a request waits, %d in all", model.name, self._waiting.count(model.name))
        self._dispatcher.tick()
        try:
            return await grant
        except asyncio.CancelledError:
            self._withdraw(model, waiter)
            raise

    def _refusal(self, model: Model) -> Exception | None:
        in_use = model.instance.requests if model.instance else 0
        crowd = Crowd(in_use, self._waiting.count(model.name), self._waiting.count_all())
        return admission.refusal(model.name, model.preset.manners, crowd, self._max_queue)

    def _withdraw(self, model: Model, waiter: Waiter) -> None:
        self._waiting.leave(model.name, waiter)
        if waiter.grant.done() and not waiter.grant.cancelled() and waiter.grant.exception() is None:
            self.release(waiter.grant.result(), is_answered=False)  # granted in the very moment its client left
        for other in self._dispatcher.stay_after_all():
            self.serve_waiters(other)
        self._dispatcher.tick()

    def _grant(self, model: Model, touch: bool, stay: Stay | None) -> Lease:
        assert model.instance is not None
        model.instance.leases += 1
        model.instance.requests += touch
        if touch:
            model.last_used = self._clock()
        if stay is not None and not model.preset.pin:
            model.instance.asked_stay = stay
        return Lease(model.name, model.instance.worker.endpoint, model.instance, touch, model.preset)


def _has_place(model: Model, touch: bool) -> bool:
    """For one more request. Those that wait are served as soon as there is one, so nobody is passed by."""
    assert model.instance is not None
    return not touch or admission.free(model.preset.manners, model.instance.requests) != 0
