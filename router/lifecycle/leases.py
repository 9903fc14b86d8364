"""Grant leases on models to requests, let requests wait for them, and release them.

Owned by `lifecycle`. Writes the counters of an instance and the time of a model's last use. After every change it
calls the dispatcher, which decides what follows for other models.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from llama_corral.common.base.errors import InvalidRequest

from ..models.backoff import NO_FAILURES
from ..models.model import Instance, Model
from ..models.queue import Lease, RequestQueue, Waiter
from ..models.registry import Catalog
from ..placement import admission
from ..placement.admission import Load
from ..placement.snapshot import Retention
from ..placement.states import ModelState
from .dispatcher import Dispatcher
from .supervisor import Supervisor

log = logging.getLogger("corral.router")


class Leases:
    def __init__(
        self,
        catalog: Catalog,
        queue: RequestQueue,
        dispatcher: Dispatcher,
        supervisor: Supervisor,
        clock: Callable[[], float],
        max_queue: int,
    ) -> None:
        """`max_queue`: most requests that may wait, for all models together; 0: no limit."""
        self._catalog = catalog
        self._queue = queue
        self._dispatcher = dispatcher
        self._supervisor = supervisor
        self._clock = clock
        self._max_queue = max_queue

    async def lease_if_loaded(self, model: Model, touch: bool, retention: Retention | None) -> Lease:
        """Return a lease without loading the model; raise InvalidRequest unless the model runs.

        A worker that is still loading answers with 503 itself. If the model's concurrency limit is reached, the request
        waits. A draining instance grants no further leases, so the request is refused then.
        """
        if not model.state.is_running or model.state is ModelState.STOPPING:
            raise InvalidRequest("model is not loaded")
        if not _has_capacity(model, touch):
            if model.instance is not None and model.instance.is_draining:
                raise InvalidRequest("model is not loaded")
            return await self._wait(model, touch, retention, may_load=False)
        return self._grant(model, touch, retention)

    async def lease_or_load(self, model: Model, touch: bool, retention: Retention | None) -> Lease:
        """Return a lease, after loading the model if necessary. Raises ApiError.

        Cancelling the wait gives up the place in the queue.
        """
        if model.takes_requests and _has_capacity(model, touch):
            return self._grant(model, touch, retention)
        if model.state in (ModelState.DOWNLOADING, ModelState.DOWNLOADED):
            raise InvalidRequest(f"model name={model.name} is not running")
        if error := model.refusal(self._clock()):
            raise error
        return await self._wait(model, touch, retention, may_load=True)

    def release(self, lease: Lease, *, is_answered: bool) -> None:
        """Release a lease. `is_answered`: the response was complete, which shows that the model works."""
        instance = lease.instance
        assert isinstance(instance, Instance)
        instance.leases -= 1
        instance.requests -= lease.touch
        model = self._catalog.find(lease.model)
        if lease.touch:
            instance.idle_since = self._clock()
            if is_answered and model is not None and model.instance is instance:
                model.backoff = NO_FAILURES
        if model is not None and self._queue.count(model.name):
            self.grant_waiting(model)
        if instance.leases > 0:
            return
        if instance.is_draining and model is not None and model.instance is instance:
            self._supervisor.stop(model, instance.preemption_reason or "its preset was changed or removed")
        self._dispatcher.tick()
        if model is not None and model.retention.ttl is not None:
            self._dispatcher.unload_expired()

    def grant_waiting(self, model: Model) -> None:
        """Grant leases to the waiters that the model can serve now.

        Must be called before any tick, so that a model that has just become ready is busy when victims are chosen.
        """
        if not model.takes_requests or model.instance is None:
            return
        most = admission.free_capacity(model.preset.policy, model.instance.requests)
        for waiter in self._queue.pop(model.name, most):
            waiter.grant.set_result(self._grant(model, waiter.touch, waiter.retention))

    async def _wait(self, model: Model, touch: bool, retention: Retention | None, *, may_load: bool) -> Lease:
        if error := self._refusal(model):
            raise error
        is_up = model.state is ModelState.LOADING or model.takes_requests
        grant: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        saw_start = model.state is ModelState.LOADING or not may_load
        waiter = Waiter(
            grant, touch, retention, self._clock(), is_queued=not is_up, saw_start=saw_start, may_load=may_load
        )
        self._queue.add(model.name, waiter)
        log.debug("name=%s: a request waits, %d in all", model.name, self._queue.count(model.name))
        self._dispatcher.tick()
        try:
            return await grant
        except asyncio.CancelledError:
            self._withdraw(model, waiter)
            raise

    def _refusal(self, model: Model) -> Exception | None:
        in_use = model.instance.requests if model.instance else 0
        load = Load(in_use, self._queue.count(model.name), self._queue.count_all())
        return admission.queue_refusal(model.name, model.preset.policy, load, self._max_queue)

    def _withdraw(self, model: Model, waiter: Waiter) -> None:
        self._queue.remove(model.name, waiter)
        if waiter.grant.done() and not waiter.grant.cancelled() and waiter.grant.exception() is None:
            self.release(waiter.grant.result(), is_answered=False)  # granted just when its client disconnected
        for other in self._dispatcher.cancel_preemptions():
            self.grant_waiting(other)
        self._dispatcher.tick()

    def _grant(self, model: Model, touch: bool, retention: Retention | None) -> Lease:
        assert model.instance is not None
        model.instance.leases += 1
        model.instance.requests += touch
        if touch:
            model.last_used = self._clock()
        if retention is not None and not model.preset.pin:
            model.instance.requested_retention = retention
        return Lease(model.name, model.instance.worker.endpoint, model.instance, touch, model.preset)


def _has_capacity(model: Model, touch: bool) -> bool:
    """Return True if one more request may use the model.

    Waiting requests are served as soon as there is capacity, so no newer request is served before them.
    """
    assert model.instance is not None
    return not touch or admission.free_capacity(model.preset.policy, model.instance.requests) != 0
