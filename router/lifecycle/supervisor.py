"""Move a model's worker through its states: start it, handle its reports, ensure that it ends.

Called by `lifecycle`, which decides when. Two callbacks report changes and exits. Each change of state is published.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from llama_corral.common.base.worker_reports import WorkerReport

from ..models.events import ModelEvents
from ..models.model import Instance, Model, exit_code_of, failure_reason, launch_spec, ran_out_of_memory
from ..placement.states import IllegalModelTransition, ModelState
from ..process.launcher import Callbacks, Launcher
from .watchdog import Watchdog

log = logging.getLogger("corral.router")


class Supervisor:
    def __init__(
        self,
        launcher: Launcher,
        events: ModelEvents,
        on_change: Callable[[Model], None],
        on_exit: Callable[[Model, Instance], None],
        *,
        worker_timeout: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`worker_timeout`: seconds without progress after which a worker is killed; 0: never."""
        self._launcher = launcher
        self._events = events
        self._notify_change = on_change
        self._notify_exit = on_exit
        self.quiet_for: Callable[[str], float] = lambda _: math.inf
        """Returns the seconds since that endpoint last sent a byte of a response."""
        self._watchdog: Watchdog[Instance] = Watchdog(worker_timeout, clock, self._kill_stuck)

    def start(self, model: Model) -> bool:
        """Start a worker for the model. False: no process could be created, and the model has failed."""
        model.transition_to(ModelState.LOADING)
        model.exit_code, model.failure, model.last_lines = 0, "", ()
        model.info, model.progress, model.measured = {}, {}, None
        callbacks = Callbacks(lambda report: self._on_report(model, report), lambda code: self._on_exit(model, code))
        try:
            worker = self._launcher.launch(launch_spec(model.preset), callbacks)
        except OSError as error:
            self._finish_exit(model, 1, f"failed to spawn server instance: {error}")
            return False
        model.instance = Instance(worker)
        model.command_line = worker.arguments
        log.info("starting name=%s: %s", model.name, " ".join(worker.arguments))
        self._events.publish(model.name, "model_status", {"status": ModelState.LOADING.value})
        return True

    def stop(self, model: Model, reason: str) -> None:
        """Ask the worker to exit, and kill it after the preset's `stop_timeout` (seconds).

        A worker that is still loading is killed immediately, because it cannot read the request.
        """
        instance = model.instance
        if instance is None or model.state is ModelState.STOPPING:
            return
        log.info("stopping name=%s: %s", model.name, reason)
        self._watchdog.forget(instance)
        instance.displayed_state = model.state
        model.transition_to(ModelState.STOPPING)
        if instance.displayed_state is ModelState.LOADING:
            instance.worker.kill()
            return
        instance.worker.stop()
        timeout = model.preset.stop_timeout
        instance.deadline = asyncio.get_running_loop().call_later(timeout, self._on_stop_timeout, model, instance)

    def _on_stop_timeout(self, model: Model, instance: Instance) -> None:
        log.warning("force-killing name=%s: it did not exit within %gs", model.name, model.preset.stop_timeout)
        instance.worker.kill()

    def _kill_stuck(self, instance: Instance, why: str) -> None:
        instance.failure = f"it was killed because it hung: {why} (--worker-timeout)"
        log.error("killing pid %s: %s", instance.worker.pid, why)
        instance.worker.kill()

    def _on_report(self, model: Model, report: WorkerReport) -> None:
        instance = model.instance
        if instance is None:
            return
        if report.state == "failed":
            instance.failure = str(report.payload.get("message", "")) or "no reason given"
            return
        if model.state is ModelState.STOPPING:
            return
        if report.state == "alive":
            self._record_sign_of_life(model, instance, report.payload)
            return
        try:
            self._apply_report(model, report)
        except IllegalModelTransition as error:
            log.warning("name=%s reported %s: %s", model.name, report.state, error)
            return
        self._notify_change(model)

    def _record_sign_of_life(self, model: Model, instance: Instance, sign: object) -> None:
        """Record a heartbeat. For another program its shim does not know of requests, so the router adds them."""
        if model.preset.backend is None:
            self._watchdog.record(instance, sign)
        else:
            quiet_for = self.quiet_for(instance.worker.endpoint)
            self._watchdog.record(instance, sign, has_requests=instance.leases > 0, quiet_for=quiet_for)

    def _apply_report(self, model: Model, report: WorkerReport) -> None:
        data: dict[str, Any] = {}
        new = _STATE_OF[report.state]
        if model.state is not new:
            model.transition_to(new)
        if new is ModelState.LOADING:
            model.progress = data["progress"] = report.payload
        elif new is ModelState.LOADED and report.payload:  # empty on waking up: the first report is still valid
            model.info = data["info"] = report.payload
        if report.memory is not None:
            model.measured = report.memory
        log.log(logging.DEBUG if new is ModelState.LOADING else logging.INFO, "name=%s is %s", model.name, new.value)
        self._events.publish(model.name, "status_change", {"status": new.value, **data})

    def _on_exit(self, model: Model, returncode: int) -> None:
        instance = model.instance
        assert instance is not None
        if instance.deadline is not None:
            instance.deadline.cancel()
        model.instance = None
        model.last_lines = instance.worker.last_lines
        self._watchdog.forget(instance)
        instance.is_fault = returncode != 0 and model.state is not ModelState.STOPPING
        instance.ran_out_of_memory = ran_out_of_memory(instance, returncode)
        instance.failure = failure_reason(instance, returncode)
        self._finish_exit(model, exit_code_of(returncode), instance.failure)
        self._notify_exit(model, instance)
        instance.exited.set()

    def _finish_exit(self, model: Model, exit_code: int, failure: str) -> None:
        was_asked = model.state is ModelState.STOPPING
        model.transition_to(ModelState.FAILED if exit_code else ModelState.UNLOADED)
        model.exit_code, model.failure = exit_code, failure
        level = logging.ERROR if exit_code and not was_asked else logging.INFO
        log.log(level, "name=%s exited with code %d%s", model.name, exit_code, f": {failure}" if exit_code else "")
        self._events.publish(model.name, "status_change", {"status": ModelState.UNLOADED.value, "exit_code": exit_code})


_STATE_OF = {"loading": ModelState.LOADING, "ready": ModelState.LOADED, "sleeping": ModelState.SLEEPING}
