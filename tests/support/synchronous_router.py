"""A reducer with effects that need no event loop: a test delivers what would come later, in whatever order it likes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from lifecycle_tools import SizedBudget
from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.presets.preset import Preset
from llama_corral.router.models.download import Download
from llama_corral.router.models.model import ModelView
from llama_corral.router.models.queue import Asker, Command, Lease
from llama_corral.router.placement.placement import PlacementRules
from llama_corral.router.process.launcher import Callbacks
from llama_corral.router.reducer import effects as does
from llama_corral.router.reducer import events
from llama_corral.router.reducer.effects import Effect, Process, Timer
from llama_corral.router.reducer.events import Event
from llama_corral.router.reducer.reducer import Intake, Reducer
from llama_corral.router.reducer.state import initial_state
from memory_workers import InProcessLauncher, InProcessWorker

Answer = Lease | ApiError | None


class SynchronousRouter:
    """Implements `Effects`. Workers start at once; estimates, sources and timers wait until the test delivers them."""

    def __init__(
        self,
        presets: dict[str, Preset],
        launcher: InProcessLauncher,
        memory_budget: SizedBudget,
        clock: Callable[[], float],
        *,
        models_max: int,
        rules: PlacementRules,
    ) -> None:
        self.state = initial_state(presets, launcher.command, memory_budget, rules, models_max=models_max)
        self.answers: defaultdict[Asker, list[Answer]] = defaultdict(list)
        self.published: list[does.Publish] = []
        self.estimates: list[does.EstimateMemory] = []
        self.sources_to_read: list[Download] = []
        self.timers: dict[Timer, float] = {}
        self.clock = clock
        self._intake = Intake(Reducer(self.state), self)
        self._launcher = launcher
        self._memory_budget = memory_budget
        self._workers: dict[Process, InProcessWorker] = {}

    def put(self, kind: type[Event], *arguments: object) -> None:
        self._intake.put(kind(self.clock(), *arguments))

    def ask(self, kind: type[Event], what: str, *arguments: object) -> Command:
        """Put a command."""
        command = Command(what)
        self.put(kind, command, *arguments)
        return command

    def view(self, name: str) -> ModelView | None:
        return self.state.view(name, self.clock())

    def views(self) -> list[ModelView]:
        return [view for name in self.state.catalog.names() if (view := self.view(name)) is not None]

    # -- effects -----------------------------------------------------------------------------------------------------

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case does.Grant():
                self.answers[effect.asker].append(effect.lease)
            case does.Finish():
                self.answers[effect.asker].append(None)
            case does.Refuse():
                self.answers[effect.asker].append(effect.error)
            case does.Publish():
                self.published.append(effect)
            case does.SetTimer():
                self.timers[effect.timer] = self.clock() + effect.delay
            case does.CancelTimer():
                self.timers.pop(effect.timer, None)
            case does.StartWorker():
                self._start(effect)
            case does.StopWorker():
                self._workers[effect.process].stop(effect.reason)
            case does.KillWorker():
                self._workers[effect.process].kill()
            case does.EstimateMemory():
                self.estimates.append(effect)
            case does.ReadSourcesAgain():
                self.sources_to_read.append(effect.download)

    def _start(self, effect: does.StartWorker) -> None:
        process = effect.process

        def on_report(report: WorkerReport) -> None:
            self.put(events.WorkerReported, process, report)

        def on_exit(returncode: int) -> None:
            self.put(events.WorkerExited, process, returncode, self._workers[process].last_lines)

        try:
            worker = self._launcher.launch(effect.spec, Callbacks(on_report, on_exit))
        except OSError as error:
            self.put(events.StartFailed, process, str(error))
            return
        self._workers[process] = worker
        self.put(events.WorkerStarted, process, worker)

    # -- what would come later ---------------------------------------------------------------------------------------

    def deliver_estimates(self) -> None:
        pending, self.estimates = self.estimates, []
        for effect in pending:
            need = self._memory_budget.needs.get(effect.preset.name)
            self.put(events.MemoryEstimated, effect.model, effect.preset, need)

    def read_sources(self, presets: dict[str, Preset]) -> None:
        """Apply these presets for the downloads that have ended, and report it."""
        pending, self.sources_to_read = self.sources_to_read, []
        for download in pending:
            self.ask(events.ReloadRequested, "reload after a download", presets)
            self.put(events.SourcesRead, download)

    def fire_timers(self, now: float) -> None:
        """Fire each timer that is set for `now` or earlier."""
        for timer, when in sorted(self.timers.items(), key=lambda pair: pair[1]):
            if when <= now and timer in self.timers:
                del self.timers[timer]
                self.put(events.TimerFired, timer)
