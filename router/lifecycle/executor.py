"""Carry out the reducer's effects with asyncio: processes, timers, tasks, and the futures of requests and commands.

Owned by `lifecycle`. It decides nothing: everything that happens here goes to the reducer as an event.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import assert_never

from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.worker_reports import WorkerReport

from ..memory.budget import MemoryBudget
from ..models.download import Download
from ..models.events import ModelEvents
from ..models.exit_reasons import kernel_oom_kills
from ..models.model import Instance
from ..models.queue import Asker, Lease
from ..models.tasks import Tasks
from ..process.launcher import Callbacks, Launcher, Worker
from ..reducer import effects as does
from ..reducer import events
from ..reducer.effects import Effect, Process, Timer
from ..reducer.events import Event
from ..reducer.reducer import Intake, Reducer
from .watchdog import Watchdog

log = logging.getLogger("corral.router")


class Answer:
    """The answer to one asker. It has a future only if the asker must wait, because most requests need not wait."""

    __slots__ = ("_error", "_future", "_lease", "is_given")

    def __init__(self) -> None:
        self.is_given = False
        self._lease: Lease | None = None
        self._error: ApiError | None = None
        self._future: asyncio.Future[None] | None = None

    def give(self, lease: Lease | None, error: ApiError | None) -> None:
        """Record the answer, unless there is one already."""
        if self.is_given:
            return
        self.is_given, self._lease, self._error = True, lease, error
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def get(self) -> Lease | None:
        """Return the lease of a request, None for a command. Raises ApiError if it was refused."""
        assert self.is_given
        if self._error is not None:
            raise self._error
        return self._lease

    async def wait(self) -> Lease | None:
        """Wait until the answer is given, and return it as `get` does."""
        self._future = asyncio.get_running_loop().create_future()
        await self._future
        return self.get()


class Executor:
    """Implements `Effects`."""

    def __init__(
        self,
        reducer: Reducer,
        launcher: Launcher,
        memory_budget: MemoryBudget,
        model_events: ModelEvents,
        clock: Callable[[], float],
        worker_timeout: float,
    ) -> None:
        """`worker_timeout`: seconds without progress after which a worker is killed; 0: never."""
        self._intake = Intake(reducer, self)
        self._launcher = launcher
        self._memory_budget = memory_budget
        self._model_events = model_events
        self._clock = clock
        self.quiet_for: Callable[[str], float] = lambda _: math.inf
        """Returns the seconds since that endpoint last sent a byte of a response."""
        self._watchdog: Watchdog[Instance] = Watchdog(worker_timeout, clock, self._on_hung)
        self._workers: dict[Process, Worker] = {}
        self._exits: dict[Instance, asyncio.Event] = {}
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._answers: dict[Asker, Answer] = {}
        self._tasks = Tasks()

    def put(self, event: Event) -> None:
        """Have the reducer handle an event, and carry out its effects, before this returns."""
        self._intake.put(event)

    async def ask(self, event: Event, asker: Asker) -> Lease | None:
        """Put an event and wait for its answer. Raises ApiError. Cancelling the wait is an event too."""
        answer = self._answers[asker] = Answer()
        try:
            self.put(event)
            return answer.get() if answer.is_given else await answer.wait()
        except asyncio.CancelledError:
            self.put(events.ClientLeft(self._clock(), asker))
            raise
        finally:
            del self._answers[asker]

    def ask_now(self, event: Event, asker: Asker) -> None:
        """Put an event that is answered at once. Raises ApiError."""
        answer = self._answers[asker] = Answer()
        try:
            self.put(event)
            answer.get()
        finally:
            del self._answers[asker]

    async def wait_for_exit(self, instance: Instance) -> None:
        if not instance.is_gone:
            await self._exits.setdefault(instance, asyncio.Event()).wait()

    # -- effects -----------------------------------------------------------------------------------------------------

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case does.Grant():
                self._answer(effect.asker, effect.lease, None)
            case does.Finish():
                self._answer(effect.asker, None, None)
            case does.Refuse():
                self._answer(effect.asker, None, effect.error)
            case does.Publish():
                self._model_events.publish(effect.model, effect.event, effect.data)
            case does.EndEvents():
                self._model_events.close()
            case does.SetTimer():
                self._set_timer(effect.timer, effect.delay)
            case does.CancelTimer():
                self._cancel_timer(effect.timer)
            case does.StartWorker():
                self._start(effect)
            case does.StopWorker():
                if (worker := self._ending(effect.process)) is not None:
                    worker.stop(effect.reason)
            case does.KillWorker():
                if (worker := self._ending(effect.process)) is not None:
                    worker.kill()
            case does.RecordHeartbeat():
                self._record_heartbeat(effect)
            case does.EstimateMemory():
                self._tasks.spawn(self._estimate(effect))
            case does.ReadSourcesAgain():
                self._tasks.spawn(self._read_sources(effect.download))
            case _:
                assert_never(effect)

    def _answer(self, asker: Asker, lease: Lease | None, error: ApiError | None) -> None:
        if (answer := self._answers.get(asker)) is not None:  # None: its client left, which is the next event
            answer.give(lease, error)

    def _set_timer(self, timer: Timer, delay: float) -> None:
        self._cancel_timer(timer)
        self._timers[timer] = asyncio.get_running_loop().call_later(max(0.0, delay), self._on_timer, timer)

    def _cancel_timer(self, timer: Timer) -> None:
        if (handle := self._timers.pop(timer, None)) is not None:
            handle.cancel()

    def _on_timer(self, timer: Timer) -> None:
        del self._timers[timer]
        self.put(events.TimerFired(self._clock(), timer))

    # -- processes ---------------------------------------------------------------------------------------------------

    def _start(self, effect: does.StartWorker) -> None:
        process = effect.process

        def on_report(report: WorkerReport) -> None:
            self.put(events.WorkerReported(self._clock(), process, report))

        def on_exit(returncode: int) -> None:
            self._on_exit(process, returncode)

        kills = kernel_oom_kills()
        try:
            worker = self._launcher.launch(effect.spec, Callbacks(on_report, on_exit))
        except OSError as error:
            self.put(events.StartFailed(self._clock(), process, str(error)))
            return
        self._workers[process] = worker
        self.put(events.WorkerStarted(self._clock(), process, worker, kills))

    def _ending(self, process: Process) -> Worker | None:
        """Return the worker that is to end, if it still runs; from now on it may hang."""
        if isinstance(process, Instance):
            self._watchdog.forget(process)
        return self._workers.get(process)

    def _on_exit(self, process: Process, returncode: int) -> None:
        lines = self._workers.pop(process).last_lines
        if isinstance(process, Instance):
            self._watchdog.forget(process)
        self.put(events.WorkerExited(self._clock(), process, returncode, lines, kernel_oom_kills()))
        if isinstance(process, Instance) and (exited := self._exits.pop(process, None)) is not None:
            exited.set()

    def _record_heartbeat(self, effect: does.RecordHeartbeat) -> None:
        instance = effect.instance
        if not effect.is_program or instance.worker is None:
            self._watchdog.record(instance, effect.heartbeat)
            return
        quiet_for = self.quiet_for(instance.worker.endpoint)
        self._watchdog.record(instance, effect.heartbeat, has_requests=instance.leases > 0, quiet_for=quiet_for)

    def _on_hung(self, instance: Instance, reason: str) -> None:
        self.put(events.WorkerHung(self._clock(), instance, reason))

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def _estimate(self, effect: does.EstimateMemory) -> None:
        try:
            need = await self._memory_budget.expected(effect.preset)
        except Exception:
            log.exception("the memory of name=%s cannot be estimated", effect.model.name)
            need = None
        self.put(events.MemoryEstimated(self._clock(), effect.model, effect.preset, need))

    async def _read_sources(self, download: Download) -> None:
        failure = ""
        try:
            await download.read_sources()
        except ApiError as error:
            failure = error.message
        except Exception as error:
            log.exception("reading the sources after the download of %s failed", download.model.name)
            failure = str(error)
        self.put(events.SourcesRead(self._clock(), download, failure))
