"""Random histories of clients, commands and workers: the invariants are true after each step, and all work ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lifecycle_tools import GIB, SizedBudget
from llama_corral.common.base.errors import ApiError, InvalidRequest, NoCapacity, QueueFull, TooManyRequests
from llama_corral.common.base.worker_reports import DOWNLOAD_ENV
from llama_corral.presets.options.values import AUTO_LIMIT, NO_LIMIT
from llama_corral.presets.policy import ModelGroup, ModelPolicy
from llama_corral.router.lifecycle import dispatcher
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.placement.device_split import Need, Split
from llama_corral.router.placement.memory_amounts import Limit, Space, total
from llama_corral.router.placement.placement import PlacementRules, Retention
from memory_workers import InProcessLauncher, InProcessWorker
from router_tools import preset, presets

MODELS = ("a", "b", "c", "d")
SIZES = {"a": 1, "b": 2, "c": 3, "d": 5}  # GiB of host memory
DEVICES = ("CUDA0", "CUDA1")
NEEDS = {
    "a": Need(Space(1 * GIB)),
    "b": Need(Space(2 * GIB, {"CUDA0": 2 * GIB})),
    "c": Need(Space(3 * GIB, {"CUDA0": GIB, "CUDA1": 2 * GIB})),
    "d": Need(Space(5 * GIB), (Split((GIB,) * 4, 0, DEVICES),)),
}
DOWNLOADS = ("me/one:Q8_0", "me/two:F16")
models = st.sampled_from(MODELS)
choice = st.integers(0, 100)
MINUTES = 60.0  # longer than all readings of the clock in one history together
GROUPS = (
    ModelGroup(),
    ModelGroup(),
    ModelGroup("s"),
    ModelGroup("e", swap=False, exclusive=True),
    ModelGroup("p", swap=False, persistent=True),
)
policies = st.builds(
    ModelPolicy,
    st.integers(-1, 1),
    st.sampled_from([0.0, 10.0, 10 * MINUTES]),
    st.sampled_from(GROUPS),
    max_queue=st.sampled_from([0, 0, 1, 3]),
    concurrency=st.sampled_from([0, 0, 1, 2]),
    concurrency_refuse=st.booleans(),
    keep_warm=st.sampled_from([False, False, True]),
)
stays = st.sampled_from(
    [None, None, None, Retention(pinned=True), Retention(ttl=0.0), Retention(ttl=20 * MINUTES), Retention()]
)


class Client:
    """A request that counts its leases and endings, so that double or unreleased leases are detected."""

    def __init__(self, lifecycle: Lifecycle, model: str, autoload: bool, retention: Retention | None) -> None:
        self.model = model
        self.served = 0
        self.endings = 0
        self.finish = asyncio.Event()
        self.task = asyncio.create_task(self._request(lifecycle, autoload, retention))

    async def _request(self, lifecycle: Lifecycle, autoload: bool, retention: Retention | None) -> None:
        try:
            async with lifecycle.lease(self.model, autoload=autoload, retention=retention):
                self.served += 1
                await self.finish.wait()
        except NoCapacity as error:
            running = [view for view in lifecycle.views() if view.is_running]
            if "it needs" not in error.message and "its group" not in error.message:
                assert all(view.is_pinned for view in running)
        except (QueueFull, TooManyRequests):
            assert any(view.waiting or view.leases for view in lifecycle.views()), "refused beside nobody"
        except (ApiError, asyncio.CancelledError):
            pass
        self.endings += 1

    @property
    def holds(self) -> bool:
        return self.served == 1 and not self.task.done()


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clients: list[Client] = []
        self.commands: list[asyncio.Task[None]] = []
        self.ended_by_command: set[InProcessWorker] = set()
        self.now = 0.0

    @initialize(
        models_max=st.integers(0, 3),
        memory=st.sampled_from([NO_LIMIT, 4, 7, AUTO_LIMIT]),
        budgets=st.fixed_dictionaries(dict.fromkeys(DEVICES, st.sampled_from([NO_LIMIT, 2, 5, AUTO_LIMIT]))),
        rules=st.builds(
            PlacementRules,
            st.sampled_from([1.0, 20.0, 20 * MINUTES]),
            st.integers(1, 3),
            st.booleans(),
            st.sampled_from([0, 0, 4]),
        ),
        policy=st.fixed_dictionaries(dict.fromkeys(MODELS, policies)),
    )
    def begin(
        self,
        models_max: int,
        memory: int,
        budgets: dict[str, int],
        rules: PlacementRules,
        policy: dict[str, ModelPolicy],
    ) -> None:
        self.models_max, self.memory, self.rules, self.policy = models_max, memory, rules, policy
        self.budgets = {name: budget * GIB if budget > 0 else budget for name, budget in budgets.items()}
        self.memory_budget = SizedBudget(memory * GIB if memory > 0 else memory, self.budgets, **NEEDS)
        self.memory_budget.free = 7 * GIB
        self.memory_budget.free_on = {
            name: (5 if budget == AUTO_LIMIT else 100) * GIB for name, budget in self.budgets.items()
        }
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(dispatcher, "RECHECK_S", 0.0)  # time only passes by steps here
        self.launcher = InProcessLauncher(self.on_asked, self.on_launch)
        self.entries = {name: preset(name, policy=policy[name]) for name in MODELS}
        options: dict[str, Any] = {"clock": self.clock, "memory_budget": self.memory_budget, "rules": rules}
        self.lifecycle = Lifecycle(self.entries, self.launcher, models_max=models_max, autoload=True, **options)

    def clock(self) -> float:
        """Return a new time in each call; all readings of a history together are less than a minute."""
        self.now += 0.001
        return self.now

    def on_asked(self, worker: InProcessWorker) -> None:
        """Check that only a command stops a busy model, a pinned one, or one with waiting requests."""
        view = self.lifecycle.view(worker.name)
        assert view is not None
        if worker not in self.ended_by_command:
            assert view.leases == 0, "a busy model was evicted"
            assert not view.is_pinned, "a pinned model was evicted"
            assert view.waiting == 0 or view.preset is not self.entries.get(worker.name) or self.rules.preempts

    def step(self) -> None:
        self.loop.run_until_complete(settle())

    def command(self, work: Coroutine[Any, Any, None]) -> None:
        async def begin() -> None:
            self.commands.append(asyncio.create_task(work))

        self.loop.run_until_complete(begin())
        self.step()

    # -- clients -----------------------------------------------------------------------------------------------------

    @rule(model=models, autoload=st.sampled_from([True, True, True, False]), retention=stays)
    def request(self, model: str, autoload: bool, retention: Retention | None) -> None:
        async def begin() -> None:
            self.clients.append(Client(self.lifecycle, model, autoload, retention))

        self.loop.run_until_complete(begin())
        self.step()

    @precondition(lambda self: self.clients)
    @rule(number=choice)
    def leave(self, number: int) -> None:
        self.clients[number % len(self.clients)].task.cancel()
        self.step()

    @precondition(lambda self: self.clients and self.residents)
    @rule(number=choice, who=choice)
    def leave_as_the_worker_gets_ready(self, number: int, who: int) -> None:
        """Both in one turn of the loop, so that the client disconnects while its lease is being granted."""

        def both() -> None:
            self.pick(number).ready()
            self.clients[who % len(self.clients)].task.cancel()

        self.on_loop(both)
        self.step()

    @precondition(lambda self: any(client.holds for client in self.clients))
    @rule(number=choice)
    def finish(self, number: int) -> None:
        holders = [client for client in self.clients if client.holds]
        holders[number % len(holders)].finish.set()
        self.step()

    # -- workers -----------------------------------------------------------------------------------------------------

    def pick(self, number: int) -> InProcessWorker:
        return self.residents[number % len(self.residents)]

    @precondition(lambda self: self.residents)
    @rule(number=choice)
    def report_ready(self, number: int) -> None:
        self.on_loop(self.pick(number).ready)
        self.step()

    @precondition(lambda self: self.residents)
    @rule(number=choice)
    def report_sleeping(self, number: int) -> None:
        """A real worker sleeps only if it has no requests."""
        worker = self.pick(number)
        view = self.lifecycle.view(worker.name)
        if view is not None and view.leases == 0:
            self.on_loop(worker.report, "sleeping")
        self.step()

    @precondition(lambda self: self.residents)
    @rule(number=choice)
    def report_loading(self, number: int) -> None:
        self.on_loop(self.pick(number).report, "loading")
        self.step()

    @precondition(lambda self: self.residents)
    @rule(number=choice, code=st.sampled_from([0, 1, -9]))
    def die(self, number: int, code: int) -> None:
        self.on_loop(self.pick(number).exit, code)
        self.step()

    @precondition(lambda self: any(worker.must_go for worker in self.launcher.alive))
    @rule(number=choice)
    def obey(self, number: int) -> None:
        leaving = [worker for worker in self.launcher.alive if worker.must_go]
        self.on_loop(leaving[number % len(leaving)].leave)
        self.step()

    def on_loop(self, call: Any, *arguments: Any) -> None:
        async def inside() -> None:
            call(*arguments)

        self.loop.run_until_complete(inside())

    # -- commands ----------------------------------------------------------------------------------------------------

    @rule(model=models)
    def load(self, model: str) -> None:
        self.command(self.lifecycle.load(model))

    @rule(model=models)
    def unload(self, model: str) -> None:
        self.ended_by_command |= {worker for worker in self.launcher.alive if worker.name == model}
        self.command(self.lifecycle.unload(model))

    # -- downloads ---------------------------------------------------------------------------------------------------

    @property
    def residents(self) -> list[InProcessWorker]:
        return [worker for worker in self.launcher.alive if DOWNLOAD_ENV not in worker.environ]

    @property
    def downloads(self) -> list[InProcessWorker]:
        return [worker for worker in self.launcher.alive if DOWNLOAD_ENV in worker.environ]

    @rule(name=st.sampled_from(DOWNLOADS))
    def download(self, name: str) -> None:
        async def relist() -> None:
            await self.lifecycle.reload(presets(*self.entries.values()))

        async def begin() -> None:
            is_running = name in self.lifecycle.downloads.names()
            try:
                self.lifecycle.downloads.start(preset(name, source="cache"), relist)
            except InvalidRequest:
                assert is_running or self.lifecycle.view(name), "a download was refused without need"

        self.loop.run_until_complete(begin())
        self.step()

    @precondition(lambda self: self.downloads)
    @rule(number=choice, code=st.sampled_from([0, 0, 1, -9]))
    def end_download(self, number: int, code: int) -> None:
        self.on_loop(self.downloads[number % len(self.downloads)].exit, code)
        self.step()

    @rule(name=st.sampled_from(DOWNLOADS), asks=st.booleans())
    def cancel_or_ask(self, name: str, asks: bool) -> None:
        if asks:
            self.request(name, True, None)
        else:
            self.command(self.lifecycle.unload(name))

    @rule(model=models)
    def let_go(self, model: str) -> None:
        """Check that a busy model is not stopped immediately; pins are ignored."""
        self.ended_by_command |= {worker for worker in self.launcher.alive if worker.name == model}

        async def begin() -> None:
            view = self.lifecycle.view(model)
            asked = {worker for worker in self.launcher.alive if worker.must_go}
            with contextlib.suppress(ApiError):
                self.lifecycle.unload_when_idle(model)
            if view is not None and view.leases and (worker := self.launcher[model]):
                assert worker in asked or not worker.must_go, "it was asked for while somebody used it"

        self.loop.run_until_complete(begin())
        self.step()

    @rule(minutes=st.integers(1, 30))
    def time_passes(self, minutes: int) -> None:
        self.now += minutes * MINUTES
        self.on_loop(self.lifecycle.unload_expired)
        self.step()

    @rule(names=st.sets(models, min_size=1), changed=st.sets(models), pinned=st.sets(models), ttl=st.integers(0, 10))
    def reload(self, names: set[str], changed: set[str], pinned: set[str], ttl: int) -> None:
        for name in changed & names:
            options = {"ctx_size": self.now}
            self.entries[name] = preset(
                name, options=options, pin=name in pinned, ttl=ttl * MINUTES, policy=self.policy[name]
            )
        kept = {name: self.entries.get(name, preset(name, policy=self.policy[name])) for name in names}
        self.entries = kept
        self.command(self.lifecycle.reload(presets(*kept.values())))

    # -- invariants --------------------------------------------------------------------------------------------------

    @invariant()
    def never_more_than_the_limit(self) -> None:
        assert self.models_max <= 0 or len(self.residents) <= self.models_max

    @invariant()
    def never_two_of_a_group_that_swaps(self) -> None:
        assert sum(self.group(worker.name) == "s" for worker in self.residents) <= 1

    def group(self, name: str) -> str:
        return self.policy[name].group.name if name in MODELS else ""

    def on_launch(self, name: str) -> None:
        """Check that a started model fits. Before a model of an exclusive group starts, all models of other groups must
        have ended, except persistent and pinned ones."""
        if name in MODELS and self.memory != NO_LIMIT:
            assert self.taken + SIZES[name] * GIB <= self.budget, "a model started without room for it"
        if name in MODELS:
            left = self.device_limit - self.on_devices
            assert Space(devices=NEEDS[name].placed_within(left).devices).fits(left), "a device had no room for it"
        if name in MODELS and self.policy[name].group.exclusive:
            others = {worker.name for worker in self.residents} - {name}
            views = {view.name: view for view in self.lifecycle.views()}
            strangers = {other for other in others if self.group(other) not in ("e", "p")}
            assert all(views[other].is_pinned for other in strangers), "an exclusive model started beside others"

    @property
    def taken(self) -> int:
        """Host memory of all workers, including their growth since they were ready; bytes."""
        grown = sum(self.memory_budget.private.get(worker.pid or 0, 0) for worker in self.residents)
        return grown + sum(SIZES[worker.name] for worker in self.residents) * GIB

    @property
    def budget(self) -> int:
        if self.memory > 0:
            return self.memory * GIB
        return self.memory_budget.free + sum(
            self.memory_budget.private.get(worker.pid or 0, 0) for worker in self.launcher.alive
        )

    @property
    def on_devices(self) -> Space:
        """Memory of all workers on each device, as the lifecycle counts it."""
        views = [self.lifecycle.view(worker.name) for worker in self.residents]
        return total(Space(devices=view.expected.devices) for view in views if view and view.expected)

    @property
    def device_limit(self) -> Limit:
        ours = self.on_devices.devices
        present = {name: self.memory_budget.free_on[name] + ours.get(name, 0) for name in DEVICES}
        return Limit(
            None,
            {
                name: present[name] if budget == AUTO_LIMIT else budget
                for name, budget in self.budgets.items()
                if budget != NO_LIMIT
            },
        )

    @precondition(lambda self: AUTO_LIMIT in self.budgets.values())
    @rule(device=st.sampled_from(DEVICES), gib=st.integers(0, 6))
    def others_take_of_a_device_and_give_back(self, device: str, gib: int) -> None:
        if self.budgets[device] == AUTO_LIMIT:
            self.memory_budget.free_on[device] = gib * GIB
        self.step()

    @precondition(lambda self: self.memory != NO_LIMIT and self.residents)
    @rule(number=choice, gib=st.integers(0, 2))
    def grow(self, number: int, gib: int) -> None:
        """Let a worker use more memory, for example for its prompt cache."""
        worker = self.pick(number)
        view = self.lifecycle.view(worker.name)
        if view is not None and view.status in ("loaded", "sleeping") and worker.pid is not None:
            self.memory_budget.private[worker.pid] = gib * GIB
        self.step()

    @precondition(lambda self: self.memory == AUTO_LIMIT)
    @rule(gib=st.integers(0, 12))
    def others_take_and_give_back(self, gib: int) -> None:
        self.memory_budget.free = gib * GIB
        self.step()

    @invariant()
    def never_more_than_the_memory(self) -> None:
        assert self.memory <= 0 or sum(SIZES[worker.name] for worker in self.residents) <= self.memory

    @invariant()
    def never_more_than_a_device_may_have(self) -> None:
        fixed = Limit(None, {name: budget for name, budget in self.budgets.items() if budget > 0})
        assert self.on_devices.fits(fixed)

    @invariant()
    def nobody_idle_is_overdue(self) -> None:
        for view in self.lifecycle.views():
            if view.status in ("loaded", "sleeping") and not view.leases and not self.launcher[view.name].must_go:
                assert view.expires_in is None or view.expires_in > 0

    @invariant()
    def leases_are_held_by_clients(self) -> None:
        held = sum(client.holds for client in self.clients)
        counted = sum(view.leases for view in self.lifecycle.views())
        assert counted <= held, "a lease was not given back"
        assert all(client.served <= 1 for client in self.clients)

    @invariant()
    def nobody_waits_beside_a_ready_model(self) -> None:
        for view in self.lifecycle.views():
            ready = view.status in ("loaded", "sleeping") and view.preset is self.entries.get(view.name)
            if ready and not self.launcher[view.name].must_go:
                limit = self.limit_of(view.name)
                assert view.waiting == 0 or view.leases >= limit > 0 or (self.rules.preempts and view.leases)

    @invariant()
    def never_more_at_once_than_a_model_takes(self) -> None:
        for view in self.lifecycle.views():
            limit = self.limit_of(view.name)
            assert not limit or view.leases <= limit
            assert not self.bound_of(view.name) or view.waiting <= self.bound_of(view.name)
        assert not self.rules.max_queue or sum(view.waiting for view in self.lifecycle.views()) <= self.rules.max_queue

    def limit_of(self, name: str) -> int:
        return self.policy[name].concurrency if name in MODELS else 0

    def bound_of(self, name: str) -> int:
        return self.policy[name].max_queue if name in MODELS else 0

    @invariant()
    def waiters_are_counted(self) -> None:
        waiting = sum(not client.served and not client.task.done() for client in self.clients)
        assert waiting == sum(view.waiting for view in self.lifecycle.views())

    def teardown(self) -> None:
        if not hasattr(self, "lifecycle"):
            self.loop.close()
            return
        self.come_to_rest()
        assert all(client.task.done() for client in self.clients), "a client was forgotten"
        for client in self.clients:
            if not client.task.cancelled() and (error := client.task.exception()) is not None:
                raise error  # neither served, nor refused, nor disconnected
            assert client.endings == 1 or client.task.cancelled(), "a client ended twice"
        for client in self.clients:
            client.task.result()  # raises if a client failed
        assert all(command.done() for command in self.commands), "a command was forgotten"
        assert all(view.leases == view.waiting == 0 for view in self.lifecycle.views())
        assert not self.lifecycle.downloads.names() or self.downloads, "a download was forgotten"
        self.close()

    def come_to_rest(self) -> None:
        """Let clients finish and workers obey and become ready, until everything is served."""
        self.memory_budget.free = 100 * GIB
        self.memory_budget.free_on = dict.fromkeys(DEVICES, 100 * GIB)
        for _ in range(10 * (len(self.clients) + len(self.commands) + len(MODELS))):
            self.step()
            for client in self.clients:
                client.finish.set()
            for worker in self.residents:
                self.on_loop(worker.leave if worker.must_go else worker.ready)
            for worker in self.downloads:
                self.on_loop(worker.exit, 0)
            self.now += 30 * MINUTES
            self.on_loop(self.lifecycle.unload_expired)
            if all(task.done() for task in (*(client.task for client in self.clients), *self.commands)):
                break

    def close(self) -> None:
        for command in self.commands:
            command.exception()  # commands may be refused
        self.ended_by_command |= set(self.launcher.alive)
        self.command(self.lifecycle.close())
        for worker in self.launcher.alive:
            self.on_loop(worker.leave)
        self.step()
        assert self.commands[-1].done()
        assert self.launcher.is_closed
        self.patch.undo()
        self.loop.close()


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
