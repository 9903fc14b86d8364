"""Carry out what `placement` decides: start, evict and refuse models, for the queue and by timers.

Owned by `lifecycle`, which calls `tick` after every change, and `unload_expired` after each change that affects when a
model expires. It starts and stops models through `supervisor`. It grants no leases, but refuses requests whose model
cannot start.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math

from llama_corral.common.base.errors import ApiError, InvalidRequest, NoCapacity, ServerFault

from ..models.model import Instance, Model
from ..models.queue import RequestQueue
from ..models.registry import Catalog
from ..placement import keep_warm, placement, queue_order
from ..placement.groups import blocking_models
from ..placement.snapshot import PlacementSnapshot
from ..placement.states import ModelState
from .idle_timer import IdleTimer
from .memory_accounting import MemoryAccounting
from .supervisor import Supervisor

log = logging.getLogger("corral.router")

RECHECK_S = 0.5
"""For memory that the next model of the queue waits for."""
WARM_RECHECK_S = 10.0
"""For memory that models to keep warm need: no request waits for it."""
MAX_DELAY_S = 3600.0
"""Longest timer: options allow times that are too long for some clocks."""


class Dispatcher:
    def __init__(
        self,
        catalog: Catalog,
        queue: RequestQueue,
        memory_accounting: MemoryAccounting,
        supervisor: Supervisor,
        *,
        models_max: int,
        load_delay: float = 0.0,
    ) -> None:
        self._catalog = catalog
        self._queue = queue
        self._memory_accounting = memory_accounting
        self._supervisor = supervisor
        self._models_max = models_max
        self._load_delay = load_delay
        self._idle_timer = IdleTimer(
            memory_accounting.clock, functools.partial(self._snapshot, counts_memory=False), self._unload_expired
        )
        self._recheck_timer: asyncio.TimerHandle | None = None
        self._start_tasks: set[asyncio.Task[None]] = set()
        self._starts_allowed = asyncio.Event()
        self._starts_allowed.set()
        self._is_starting_warm = False
        self._is_closed = False

    def hold_starts(self) -> None:
        """Start no model until `release_starts`."""
        self._starts_allowed.clear()

    def release_starts(self) -> None:
        self._starts_allowed.set()

    async def wait_for_release(self) -> None:
        await self._starts_allowed.wait()

    def unload_expired(self) -> None:
        self._idle_timer.check()

    def close(self) -> None:
        """Stop all timers and starts; later calls of `tick` decide nothing."""
        self._is_closed = True
        self._idle_timer.close()
        if self._recheck_timer is not None:
            self._recheck_timer.cancel()
        for task in self._start_tasks:
            task.cancel()

    def _snapshot(self, *, counts_memory: bool = True) -> PlacementSnapshot:
        return self._memory_accounting.snapshot(
            self._catalog,
            self._queue.entries,
            self._models_max,
            starts_held=not self._starts_allowed.is_set(),
            counts_memory=counts_memory,
        )

    def tick(self) -> None:
        """Carry out decisions until none is left, then set the timer for the next check."""
        for name in self._queue.models_without_entry:
            model = self._catalog.find(name)
            if model is not None and not model.takes_requests and model.state is not ModelState.LOADING:
                self._queue.requeue(name)
        while self._queue.has_queue and not self._is_closed:
            snapshot = self._snapshot()
            decision = placement.decide(snapshot)
            if not decision:
                self._schedule_recheck(snapshot)
                return
            for refusal in decision.refuse:
                why = f"model '{refusal.model}' cannot be loaded: {refusal.reason}"
                self._queue.refuse(refusal.model, functools.partial(NoCapacity, why))
            for eviction in decision.evict:
                self._evict(eviction)
            for retirement in decision.preempt:
                self._preempt(retirement)
            if decision.start is not None:
                self._start_queued(self._catalog[decision.start])
        self._load_keep_warm()

    def _load_keep_warm(self) -> None:
        """Start the next model to keep warm; called when the queue is empty."""
        if self._is_closed or self._is_starting_warm or not any(model.needs_warm_load for model in self._catalog):
            return
        snapshot = self._snapshot()
        name = keep_warm.next_warm(snapshot)
        if name is not None:
            self._is_starting_warm = True
            self._track_task(asyncio.get_running_loop().create_task(self._start_warm(self._catalog[name])))
            return
        when = keep_warm.next_check(snapshot)
        delay = math.inf if when is None else when - snapshot.now
        self._recheck_after(min(delay, WARM_RECHECK_S) if keep_warm.waits_for_space(snapshot) else delay)

    async def _start_warm(self, model: Model) -> None:
        try:
            await self._memory_accounting.estimate_memory(model)
        finally:
            self._is_starting_warm = False
        if model in self._catalog and keep_warm.next_warm(self._snapshot()) == model.name:
            log.info("loading name=%s to keep it warm", model.name)
            self.start(model)
        self.tick()

    def _evict(self, eviction: placement.Eviction) -> None:
        self._supervisor.stop(self._catalog[eviction.model], eviction.reason)

    def _preempt(self, retirement: placement.Eviction) -> None:
        model = self._catalog[retirement.model]
        if model.instance is not None:
            log.info("name=%s accepts no new requests: %s", model.name, retirement.reason)
            model.instance.preemption_reason = retirement.reason
            self._queue.requeue(model.name)

    def cancel_preemptions(self) -> list[Model]:
        """Cancel all pre-emptions if no overdue model is left; return the models that accept requests again."""
        yielding = [model for model in self._catalog if model.instance and model.instance.preemption_reason]
        yielding = [model for model in yielding if model.state.is_ready]
        if not yielding or queue_order.is_any_overdue(self._snapshot()):
            return []
        for model in yielding:
            assert model.instance is not None
            model.instance.preemption_reason = ""
            log.info("name=%s accepts requests again: no model waits for it to be evicted any more", model.name)
        return yielding

    def _unload_expired(self, eviction: placement.Eviction) -> None:
        self._catalog[eviction.model].is_unload_requested = True
        self._evict(eviction)

    def _schedule_recheck(self, snapshot: PlacementSnapshot) -> None:
        """Set a timer, because no event reports passing time or freed memory (above all of devices)."""
        when = queue_order.next_check(snapshot)
        delay = math.inf if when is None else when - snapshot.now
        self._recheck_after(min(delay, RECHECK_S) if placement.waits_for_space(snapshot) else delay)

    def _recheck_after(self, delay: float) -> None:
        if self._recheck_timer is not None:
            self._recheck_timer.cancel()
        if delay < math.inf:
            self._recheck_timer = asyncio.get_running_loop().call_later(min(delay, MAX_DELAY_S), self.tick)

    def _start_queued(self, model: Model) -> None:
        self._queue.claim(model.name)
        if self._load_delay:
            self._track_task(asyncio.get_running_loop().create_task(self._start_after_delay(model)))
        else:
            self.start(model)

    def retry(self, model: Model) -> bool:
        """Evict an idle model and load `model` once more after its load ran out of memory.

        Another program may have used the memory in the meantime. False: no request waits for the model any more, or no
        model can be evicted.
        """
        leaving = placement.least_valuable_idle(self._snapshot(), model.name)
        if self._is_closed or leaving is None or not self._queue.count(model.name):
            return False
        instance = self._catalog[leaving].instance
        assert instance is not None
        self._queue.retry(model.name)
        self._supervisor.stop(self._catalog[leaving], f"idle, and {model.name} ran out of memory when it was loaded")
        self._track_task(asyncio.get_running_loop().create_task(self._start_after_exits(instance, model)))
        return True

    async def _start_after_exits(self, leaving: Instance, model: Model) -> None:
        await leaving.exited.wait()
        await self._start_after_delay(model)

    async def _start_after_delay(self, model: Model) -> None:
        await asyncio.sleep(self._load_delay)
        if not self._queue.is_claimed(model.name) or not model.state.is_down:
            return  # no request waits any more, or it was started by command
        if self._starts_allowed.is_set() and placement.may_start(self._snapshot(), model.name):
            self.start(model)
        else:
            self._queue.unclaim(model.name)
        self.tick()

    def start(self, model: Model) -> None:
        model.last_used = self._memory_accounting.clock()
        model.is_unload_requested = False
        self._queue.started(model.name)
        if self._supervisor.start(model):
            assert model.instance is not None
            model.instance.started = model.last_used
            self._memory_accounting.reserve(model, self._catalog)
        else:
            model.record_failure(model.last_used, None)
            self.refuse_waiters(model)

    def refuse_waiters(self, model: Model) -> None:
        """Refuse the requests that waited for an instance that ended or could not start.

        During the back-off refuse all waiting requests.
        """
        self._queue.refuse_started(model.name, functools.partial(_start_failure, model))
        now = self._memory_accounting.clock()
        if model.refusal(now):
            self._queue.refuse(model.name, functools.partial(model.backoff.refusal, model.name, model.failure, now))

    async def evict_for_load(self, model: Model) -> None:
        """Evict the idle models that prevent a load by `POST /models/load`, and wait until they have exited."""
        leaving = [self._catalog[name] for name in placement.victims_for_load(self._snapshot(), model.name)]
        instances = [other.instance for other in leaving if other.instance is not None]
        for other in leaving:
            self._supervisor.stop(other, f"a load of {model.name} was requested, and there is no room for both")
        for instance in instances:
            await instance.exited.wait()

    def check_fits(self, model: Model) -> None:
        """Raise NoCapacity if `model` can never start in this situation, ServerFault if a later try may succeed."""
        snapshot = self._snapshot()
        if obstacle := placement.impossibility_reason(snapshot, model.name):
            raise NoCapacity(f"model '{model.name}' cannot be loaded: {obstacle}")
        if others := blocking_models(snapshot, model.name):
            names = ", ".join(other.name for other in others)
            raise ServerFault(f"model '{model.name}' cannot run at the same time as {names}, try again later")
        if not placement.has_place(snapshot):
            raise ServerFault("model limit reached, try again later")
        if not placement.has_space(snapshot, model.name):
            raise ServerFault(f"memory limit reached, try again later: model '{model.name}' needs {model.expected}")

    def _track_task(self, task: asyncio.Task[None]) -> None:
        self._start_tasks.add(task)
        task.add_done_callback(self._start_tasks.discard)


def _start_failure(model: Model) -> ApiError:
    """Return the error for requests that waited for an instance that ended before it was ready."""
    if model.exit_code:
        return ServerFault(f"model name={model.name} failed to load: {model.failure}")
    return InvalidRequest(f"model name={model.name} is not running")
