"""Random histories of clients, commands and workers: the invariants are true after each step, and all work ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lifecycle_tools import GIB, SizedBudget
from llama_corral.common.base.errors import ApiError, InvalidRequest, NoCapacity, QueueFull, TooManyRequests
from llama_corral.common.base.worker_reports import DOWNLOAD_ENV
from llama_corral.presets.options.values import AUTO_LIMIT, NO_LIMIT
from llama_corral.presets.policy import ModelGroup, ModelPolicy
from llama_corral.router.models.queue import Command, Lease, LeaseRequest
from llama_corral.router.models.registry import EDITED
from llama_corral.router.placement.device_split import Need, Split
from llama_corral.router.placement.memory_amounts import Limit, Space, total
from llama_corral.router.placement.placement import PlacementRules, Retention
from llama_corral.router.reducer import events
from llama_corral.router.reducer.events import Event
from llama_corral.router.reducer.sequence import RECHECK_S
from llama_corral.router.reducer.state import describe
from memory_workers import InProcessLauncher, InProcessWorker
from router_tools import preset, presets
from synchronous_router import Answer, SynchronousRouter

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
    """A request, its answers, and whether it has ended."""

    def __init__(self, request: LeaseRequest, answers: list[Answer]) -> None:
        self.request = request
        self.answers = answers
        self.has_ended = False
        self.is_checked = False

    @property
    def is_waiting(self) -> bool:
        return not self.has_ended and not self.answers

    @property
    def holds(self) -> bool:
        return not self.has_ended and bool(self.answers) and isinstance(self.answers[0], Lease)


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Client] = []
        self.commands: list[Command] = []
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
        is_slow=st.booleans(),
    )
    def begin(
        self,
        models_max: int,
        memory: int,
        budgets: dict[str, int],
        rules: PlacementRules,
        policy: dict[str, ModelPolicy],
        is_slow: bool,
    ) -> None:
        self.is_slow = is_slow
        """True if estimates arrive only when a rule delivers them."""
        self.models_max, self.memory, self.rules, self.policy = models_max, memory, rules, policy
        self.budgets = {name: budget * GIB if budget > 0 else budget for name, budget in budgets.items()}
        self.memory_budget = SizedBudget(memory * GIB if memory > 0 else memory, self.budgets, **NEEDS)
        self.memory_budget.free = 7 * GIB
        self.memory_budget.free_on = {
            name: (5 if budget == AUTO_LIMIT else 100) * GIB for name, budget in self.budgets.items()
        }
        self.launcher = InProcessLauncher(self.on_asked, self.on_launch)
        self.entries = {name: preset(name, policy=policy[name]) for name in MODELS}
        self.router = SynchronousRouter(
            dict(self.entries), self.launcher, self.memory_budget, self.clock, models_max=models_max, rules=rules
        )

    def clock(self) -> float:
        """Return a new time in each call; all readings of a history together are less than a minute."""
        self.now += 0.001
        return self.now

    def on_asked(self, worker: InProcessWorker) -> None:
        """Only a command may stop a model that is busy or queued."""
        view = self.router.view(worker.name)
        assert view is not None
        if worker not in self.ended_by_command and not worker.must_go:
            assert view.leases == 0, "a busy model was evicted"
            assert not view.is_pinned, "a pinned model was evicted"
            assert view.waiting == 0 or view.preset is not self.entries.get(worker.name) or self.rules.preempts

    def step(self) -> None:
        """Deliver what comes by itself after a short time, and look at the refusals."""
        for _ in range(3):
            if not self.is_slow:
                self.router.deliver_estimates()
            self.router.read_sources(presets(*self.entries.values()))
            self.router.fire_timers(self.now + RECHECK_S)
        for client in self.clients:
            if client.answers and not client.is_checked:
                client.is_checked = True
                if isinstance(client.answers[0], ApiError):
                    self.check_refusal(client, client.answers[0])

    def check_refusal(self, client: Client, error: ApiError) -> None:
        views = self.router.views()
        if isinstance(error, NoCapacity) and "it needs" not in error.message and "its group" not in error.message:
            assert all(view.is_pinned for view in views if view.is_running)
        if isinstance(error, (QueueFull, TooManyRequests)):
            assert any(view.waiting or view.leases for view in views), "refused although no request runs or waits"
        assert EDITED not in error.message, "an edit failed a request"
        client.has_ended = True

    def command(self, kind: type[Event], *arguments: object) -> Command:
        self.commands.append(self.router.ask(kind, kind.__name__, *arguments))
        self.step()
        return self.commands[-1]

    def ended(self, command: Command) -> bool:
        return bool(self.router.answers[command])

    # -- clients -----------------------------------------------------------------------------------------------------

    @rule(model=models, autoload=st.sampled_from([True, True, True, False]), retention=stays)
    def request(self, model: str, autoload: bool, retention: Retention | None) -> None:
        request = LeaseRequest(model, autoload, retention=retention)
        self.clients.append(Client(request, self.router.answers[request]))
        self.router.put(events.RequestArrived, request)
        self.step()

    @rule()
    def estimates_arrive(self) -> None:
        self.router.deliver_estimates()
        self.step()

    @precondition(lambda self: self.clients)
    @rule(number=choice)
    def leave(self, number: int) -> None:
        self.go_away(self.clients[number % len(self.clients)])
        self.step()

    def go_away(self, client: Client) -> None:
        if not client.has_ended:
            client.has_ended = True
            self.router.put(events.ClientLeft, client.request)

    @precondition(lambda self: self.clients and self.residents)
    @rule(number=choice, leaver=choice)
    def leave_as_the_worker_gets_ready(self, number: int, leaver: int) -> None:
        """The client leaves before it has seen its lease."""
        self.pick(number).ready()
        self.go_away(self.clients[leaver % len(self.clients)])
        self.step()

    @precondition(lambda self: any(client.holds for client in self.clients))
    @rule(number=choice)
    def finish(self, number: int) -> None:
        holders = [client for client in self.clients if client.holds]
        self.end(holders[number % len(holders)])
        self.step()

    def end(self, client: Client) -> None:
        client.has_ended = True
        self.router.put(events.LeaseReleased, client.request, True)

    # -- workers -----------------------------------------------------------------------------------------------------

    def pick(self, number: int) -> InProcessWorker:
        return self.residents[number % len(self.residents)]

    @precondition(lambda self: self.residents)
    @rule(number=choice)
    def report_ready(self, number: int) -> None:
        self.pick(number).ready()
        self.step()

    @precondition(lambda self: self.residents)
    @rule(number=choice)
    def report_sleeping(self, number: int) -> None:
        """A real worker sleeps only if it has no requests."""
        worker = self.pick(number)
        view = self.router.view(worker.name)
        if view is not None and view.leases == 0:
            worker.report("sleeping")
        self.step()

    @precondition(lambda self: self.residents)
    @rule(number=choice)
    def report_loading(self, number: int) -> None:
        self.pick(number).report("loading")
        self.step()

    @precondition(lambda self: self.residents)
    @rule(number=choice, code=st.sampled_from([0, 1, -9]))
    def die(self, number: int, code: int) -> None:
        self.pick(number).exit(code)
        self.step()

    @precondition(lambda self: any(worker.must_go for worker in self.launcher.alive))
    @rule(number=choice)
    def obey(self, number: int) -> None:
        leaving = [worker for worker in self.launcher.alive if worker.must_go]
        leaving[number % len(leaving)].leave()
        self.step()

    # -- commands ----------------------------------------------------------------------------------------------------

    @rule(model=models)
    def load(self, model: str) -> None:
        self.command(events.LoadRequested, model)

    @rule(model=models)
    def unload(self, model: str) -> None:
        self.ended_by_command |= {worker for worker in self.launcher.alive if worker.name == model}
        self.command(events.UnloadRequested, model)

    # -- downloads ---------------------------------------------------------------------------------------------------

    @property
    def residents(self) -> list[InProcessWorker]:
        return [worker for worker in self.launcher.alive if DOWNLOAD_ENV not in worker.environ]

    @property
    def downloads(self) -> list[InProcessWorker]:
        return [worker for worker in self.launcher.alive if DOWNLOAD_ENV in worker.environ]

    @rule(name=st.sampled_from(DOWNLOADS))
    def download(self, name: str) -> None:
        is_known = self.router.view(name) is not None
        command = self.router.ask(events.DownloadRequested, "download", preset(name, source="cache"), never_called)
        answer = self.router.answers[command]
        assert answer == [None] or (is_known and isinstance(answer[0], InvalidRequest)), "refused without need"
        self.step()

    @precondition(lambda self: self.downloads)
    @rule(number=choice, code=st.sampled_from([0, 0, 1, -9]))
    def end_download(self, number: int, code: int) -> None:
        self.downloads[number % len(self.downloads)].exit(code)
        self.step()

    @rule(name=st.sampled_from(DOWNLOADS), asks=st.booleans())
    def cancel_or_ask(self, name: str, asks: bool) -> None:
        if asks:
            self.request(name, True, None)
        else:
            self.command(events.UnloadRequested, name)

    @rule(model=models)
    def let_go(self, model: str) -> None:
        """Check that a busy model is not stopped immediately; pins are ignored."""
        self.ended_by_command |= {worker for worker in self.launcher.alive if worker.name == model}

        view = self.router.view(model)
        asked = {worker for worker in self.launcher.alive if worker.must_go}
        self.router.ask(events.IdleUnloadRequested, "unload when idle", model)
        if view is not None and view.leases and (worker := self.launcher[model]):
            assert worker in asked or not worker.must_go, "it was stopped while a request used it"
        self.step()

    @rule(minutes=st.integers(1, 30))
    def time_passes(self, minutes: int) -> None:
        self.now += minutes * MINUTES
        self.router.fire_timers(self.now)
        self.step()

    @rule(
        names=st.sets(models, min_size=1),
        changed=st.sets(models),
        pinned=st.sets(models),
        ttl=st.integers(0, 10),
        on_startup=st.sets(models),
    )
    def reload(self, names: set[str], changed: set[str], pinned: set[str], ttl: int, on_startup: set[str]) -> None:
        for name in changed & names:
            options = {"ctx_size": self.now}
            self.entries[name] = preset(
                name,
                options=options,
                pin=name in pinned,
                ttl=ttl * MINUTES,
                policy=self.policy[name],
                load_on_startup=name in on_startup,
            )
        kept = {name: self.entries.get(name, preset(name, policy=self.policy[name])) for name in names}
        self.entries = kept
        self.command(events.ReloadRequested, presets(*kept.values()))

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
            views = {view.name: view for view in self.router.views()}
            strangers = {other for other in others if self.group(other) not in ("e", "p")}
            assert all(views[other].is_pinned for other in strangers), "an exclusive model started while others run"

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
        views = [self.router.view(worker.name) for worker in self.residents]
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
        view = self.router.view(worker.name)
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
    def no_idle_model_is_overdue(self) -> None:
        for view in self.router.views():
            if view.status in ("loaded", "sleeping") and not view.leases and not self.launcher[view.name].must_go:
                assert view.expires_in is None or view.expires_in > 0

    @invariant()
    def leases_are_held_by_clients(self) -> None:
        held = sum(client.holds for client in self.clients)
        counted = sum(view.leases for view in self.router.views())
        assert len(self.router.state.leases) == held
        assert counted <= held, "a lease was not given back"  # less after a worker died
        assert all(len(client.answers) <= 1 for client in self.clients), "a client was answered twice"

    @invariant()
    def no_request_waits_for_a_ready_model(self) -> None:
        for view in self.router.views():
            ready = view.status in ("loaded", "sleeping") and view.preset is self.entries.get(view.name)
            if ready and not self.launcher[view.name].must_go:
                limit = self.limit_of(view.name)
                assert view.waiting == 0 or view.leases >= limit > 0 or (self.rules.preempts and view.leases)

    @invariant()
    def never_more_at_once_than_a_model_takes(self) -> None:
        for view in self.router.views():
            limit = self.limit_of(view.name)
            assert not limit or view.leases <= limit
            assert not self.bound_of(view.name) or view.waiting <= self.bound_of(view.name)
        assert not self.rules.max_queue or sum(view.waiting for view in self.router.views()) <= self.rules.max_queue

    def limit_of(self, name: str) -> int:
        return self.policy[name].concurrency if name in MODELS else 0

    def bound_of(self, name: str) -> int:
        return self.policy[name].max_queue if name in MODELS else 0

    @invariant()
    def waiters_are_counted(self) -> None:
        waiting = sum(client.is_waiting for client in self.clients)
        estimating = sum(len(requests) for requests in self.router.state.estimates.values())
        assert waiting == sum(view.waiting for view in self.router.views()) + estimating

    @invariant()
    def the_state_can_be_described(self) -> None:
        text = describe(self.router.state, self.now)
        assert all(f"<Model {worker.name} " in text for worker in self.residents)

    def teardown(self) -> None:
        if not hasattr(self, "router"):
            return
        self.come_to_rest()
        assert all(client.has_ended for client in self.clients), "a client was forgotten"
        assert all(self.ended(command) for command in self.commands), "a command was forgotten"
        assert all(view.leases == view.waiting == 0 for view in self.router.views())
        assert not self.router.state.downloads or self.downloads, "a download was forgotten"
        self.close()

    def come_to_rest(self) -> None:
        """Clients finish what they get, workers obey and become ready: then everything must be served."""
        self.memory_budget.free = 100 * GIB
        self.memory_budget.free_on = dict.fromkeys(DEVICES, 100 * GIB)
        self.is_slow = False
        for _ in range(10 * (len(self.clients) + len(self.commands) + len(MODELS))):
            self.step()
            for client in self.clients:
                if client.holds:
                    self.end(client)
            for worker in self.residents:
                (worker.leave if worker.must_go else worker.ready)()
            for worker in self.downloads:
                worker.exit(0)
            self.now += 30 * MINUTES
            self.router.fire_timers(self.now)
            if all(client.has_ended for client in self.clients) and all(map(self.ended, self.commands)):
                break

    def close(self) -> None:
        self.ended_by_command |= set(self.launcher.alive)
        closing = self.command(events.ClosingRequested)
        for worker in self.launcher.alive:
            worker.leave()
        self.step()
        assert self.ended(closing)
        assert not self.router.state.exit_waits


async def never_called() -> None:
    """The test reads the sources itself."""


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
