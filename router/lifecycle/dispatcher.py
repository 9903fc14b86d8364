"""Carries out what `placement` decides: starts and evicts models, for the queue and by the clock.

Owned by `lifecycle`, which calls `tick` after every change, and `unload_expired` after whatever may change a model's
time. It serves nobody: it refuses those who wait in vain, and starts models through `supervisor`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math

from llama_corral.common.base.errors import ApiError, InvalidRequest, NoPlace, ServerFault

from ..models.model import Instance, Model
from ..models.queue import WaitingRoom
from ..models.registry import Catalog
from ..placement import keep_warm, placement, queue_order
from ..placement.groups import in_the_way
from ..placement.snapshot import Snapshot
from ..placement.states import State
from .idle_timer import Expiry
from .memory_accounting import Accounts
from .supervisor import Supervisor

log = logging.getLogger("corral.router")

RECHECK_S = 0.5
WARM_RECHECK_S = 10.0
"""For memory that others on this machine may give back: nobody waits for it."""
LONGEST_DELAY_S = 3600.0
"""Not every clock can count as far as options may say."""


class Dispatcher:
    def __init__(
        self,
        catalog: Catalog,
        waiting: WaitingRoom,
        accounts: Accounts,
        supervisor: Supervisor,
        *,
        models_max: int,
        load_delay: float = 0.0,
    ) -> None:
        self._catalog = catalog
        self._waiting = waiting
        self._accounts = accounts
        self._supervisor = supervisor
        self._models_max = models_max
        self._load_delay = load_delay
        self._expiry = Expiry(accounts.clock, functools.partial(self._snapshot, counts_memory=False), self._expire)
        self._recheck: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._may_start = asyncio.Event()
        self._may_start.set()
        self._is_warming = False
        self._is_closed = False

    def hold(self) -> None:
        """Nothing starts until `release`."""
        self._may_start.clear()

    def release(self) -> None:
        self._may_start.set()

    async def released(self) -> None:
        await self._may_start.wait()

    def unload_expired(self) -> None:
        self._expiry.check()

    def close(self) -> None:
        """Decides nothing any more."""
        self._is_closed = True
        self._expiry.close()
        if self._recheck is not None:
            self._recheck.cancel()
        for task in self._starting:
            task.cancel()

    def _snapshot(self, *, counts_memory: bool = True) -> Snapshot:
        return self._accounts.snapshot(
            self._catalog,
            self._waiting.entries,
            self._models_max,
            starts_held=not self._may_start.is_set(),
            counts_memory=counts_memory,
        )

    def tick(self) -> None:
        for name in self._waiting.without_entry:
            model = self._catalog.find(name)
            if model is not None and not model.takes_requests and model.state is not State.LOADING:
                self._waiting.requeue(name)
        while self._waiting.has_queue and not self._is_closed:
            snapshot = self._snapshot()
            decision = placement.tick(snapshot)
            if not decision:
                self._look_again(snapshot)
                return
            for refusal in decision.refuse:
                why = f"model '{refusal.model}' cannot be loaded: {refusal.reason}"
                self._waiting.refuse(refusal.model, functools.partial(NoPlace, why))
            for eviction in decision.evict:
                self._evict(eviction)
            for retirement in decision.retire:
                self._retire(retirement)
            if decision.start is not None:
                self._start_queued(self._catalog[decision.start])
        self._keep_warm()

    def _keep_warm(self) -> None:
        """Nobody waits."""
        if self._is_closed or self._is_warming or not any(model.wants_warmth for model in self._catalog):
            return
        snapshot = self._snapshot()
        name = keep_warm.next_warm(snapshot)
        if name is not None:
            self._is_warming = True
            self._keep(asyncio.get_running_loop().create_task(self._start_warm(self._catalog[name])))
            return
        when = keep_warm.next_look(snapshot)
        delay = math.inf if when is None else when - snapshot.now
        self._look_in(min(delay, WARM_RECHECK_S) if keep_warm.waits_for_space(snapshot) else delay)

    async def _start_warm(self, model: Model) -> None:
        try:
            await self._accounts.weigh(model)
        finally:
            self._is_warming = False
        if model in self._catalog and keep_warm.next_warm(self._snapshot()) == model.name:
            log.info("name=%s is loaded to be warm", model.name)
            self.start(model)
        self.tick()

    def _evict(self, eviction: placement.Eviction) -> None:
        self._supervisor.stop(self._catalog[eviction.model], eviction.reason)

    def _retire(self, retirement: placement.Eviction) -> None:
        model = self._catalog[retirement.model]
        if model.instance is not None:
            log.info("name=%s takes nothing new: %s", model.name, retirement.reason)
            model.instance.yields_to = retirement.reason
            self._waiting.requeue(model.name)

    def stay_after_all(self) -> list[Model]:
        """Those that were to yield, once nobody is left who waited too long for that; they take requests again."""
        yielding = [model for model in self._catalog if model.instance and model.instance.yields_to]
        yielding = [model for model in yielding if model.state.is_ready]
        if not yielding or queue_order.is_anybody_overdue(self._snapshot()):
            return []
        for model in yielding:
            assert model.instance is not None
            model.instance.yields_to = ""
            log.info("name=%s stays: nobody waits for its place any more", model.name)
        return yielding

    def _expire(self, eviction: placement.Eviction) -> None:
        self._catalog[eviction.model].is_sent_away = True
        self._evict(eviction)

    def _look_again(self, snapshot: Snapshot) -> None:
        """Time passes, and memory comes back, from devices above all, without anybody telling."""
        when = queue_order.next_turn(snapshot)
        delay = math.inf if when is None else when - snapshot.now
        self._look_in(min(delay, RECHECK_S) if placement.waits_for_space(snapshot) else delay)

    def _look_in(self, delay: float) -> None:
        if self._recheck is not None:
            self._recheck.cancel()
        if delay < math.inf:
            self._recheck = asyncio.get_running_loop().call_later(min(delay, LONGEST_DELAY_S), self.tick)

    def _start_queued(self, model: Model) -> None:
        self._waiting.claim(model.name)
        if self._load_delay:
            self._keep(asyncio.get_running_loop().create_task(self._start_late(model)))
        else:
            self.start(model)

    def retry(self, model: Model) -> bool:
        """Its load ran out of memory, which another program may have taken meanwhile: an idle model leaves, and it is
        loaded once more. False: nobody waits for it any more, or nobody can leave."""
        leaving = placement.one_more_victim(self._snapshot(), model.name)
        if self._is_closed or leaving is None or not self._waiting.count(model.name):
            return False
        instance = self._catalog[leaving].instance
        assert instance is not None
        self._waiting.retry(model.name)
        self._supervisor.stop(self._catalog[leaving], f"idle, and {model.name} ran out of memory when it was loaded")
        self._keep(asyncio.get_running_loop().create_task(self._start_after(instance, model)))
        return True

    async def _start_after(self, leaving: Instance, model: Model) -> None:
        await leaving.gone.wait()
        await self._start_late(model)

    async def _start_late(self, model: Model) -> None:
        await asyncio.sleep(self._load_delay)
        if not self._waiting.is_claimed(model.name) or not model.state.is_down:
            return  # nobody waits any more, or it was started by command
        if self._may_start.is_set() and placement.may_start(self._snapshot(), model.name):
            self.start(model)
        else:
            self._waiting.unclaim(model.name)
        self.tick()

    def start(self, model: Model) -> None:
        model.last_used = self._accounts.clock()
        model.is_sent_away = False
        self._waiting.started(model.name)
        if self._supervisor.start(model):
            assert model.instance is not None
            model.instance.started = model.last_used
            self._accounts.reserve(model, self._catalog)
        else:
            model.note_fault(model.last_used, None)
            self.give_up(model)

    def give_up(self, model: Model) -> None:
        """Its instance went down, or none could be made: refuses those who wait for that, in a pause all who wait."""
        self._waiting.refuse_started(model.name, functools.partial(_why_not_started, model))
        now = self._accounts.clock()
        if model.refusal(now):
            self._waiting.refuse(model.name, functools.partial(model.faults.refusal, model.name, model.failure, now))

    async def make_room(self, model: Model) -> None:
        """For a load by command: as many idle models leave, and are waited for, as it needs."""
        leaving = [self._catalog[name] for name in placement.victims_for(self._snapshot(), model.name)]
        instances = [other.instance for other in leaving if other.instance is not None]
        for other in leaving:
            self._supervisor.stop(other, f"a load of {model.name} was asked for, and there is no room for both")
        for instance in instances:
            await instance.gone.wait()

    def check_room(self, model: Model) -> None:
        snapshot = self._snapshot()
        if obstacle := placement.why_never(snapshot, model.name):
            raise NoPlace(f"model '{model.name}' cannot be loaded: {obstacle}")
        if others := in_the_way(snapshot, model.name):
            names = ", ".join(other.name for other in others)
            raise ServerFault(f"model '{model.name}' does not run beside {names}, try again later")
        if not placement.has_place(snapshot):
            raise ServerFault("model limit reached, try again later")
        if not placement.has_space(snapshot, model.name):
            raise ServerFault(f"memory limit reached, try again later: model '{model.name}' needs {model.expected}")

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)


def _why_not_started(model: Model) -> ApiError:
    """For those who waited for an instance that went down before it was ready."""
    if model.exit_code:
        return ServerFault(f"model name={model.name} failed to load: {model.failure}")
    return InvalidRequest(f"model name={model.name} is not running")
