"""Workers without processes, for lifecycle tests: the test decides when each is ready, sleeps, fails or exits."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from llama_corral.common.base.worker_reports import WorkerReport, WorkerState
from llama_corral.router.process.launcher import Callbacks, LaunchSpec

OnAsked = Callable[["InProcessWorker"], None]


class InProcessWorker:
    def __init__(self, spec: LaunchSpec, number: int, callbacks: Callbacks, on_asked: OnAsked) -> None:
        self.name = spec.name
        self.pid: int | None = number
        self.environ = dict(spec.environ)
        self.endpoint = f"/nowhere/{number}.sock"
        self.arguments = ("fake", *spec.arguments, "--host", self.endpoint)
        self.last_lines: tuple[str, ...] = ()
        self.stop_asked = False
        self.kill_asked = False
        self.is_alive = True
        self._callbacks = callbacks
        self._on_asked = on_asked

    def stop(self, reason: str = "") -> None:
        self._on_asked(self)
        self.stop_asked = True

    def kill(self) -> None:
        self._on_asked(self)
        self.kill_asked = True

    @property
    def must_go(self) -> bool:
        return self.stop_asked or self.kill_asked

    def report(self, state: WorkerState, **payload: Any) -> None:
        assert self.is_alive
        self._callbacks.on_report(WorkerReport(state, payload))

    def ready(self) -> None:
        self.report("ready", id=self.name)

    def leave(self) -> None:
        """Exit as requested."""
        assert self.must_go
        self.exit(-signal.SIGKILL if self.kill_asked else 0)

    def exit(self, code: int) -> None:
        assert self.is_alive
        self.is_alive = False
        self._callbacks.on_exit(code)


class InProcessLauncher:
    """Implements `process.Launcher`."""

    command = ("fake",)

    def __init__(self, on_asked: OnAsked = lambda _: None, on_launch: Callable[[str], None] = lambda _: None) -> None:
        """`on_asked` is called before a worker is stopped or killed, `on_launch` before one is created."""
        self._on_asked = on_asked
        self._on_launch = on_launch
        self.workers: list[InProcessWorker] = []
        self.refusal: OSError | None = None
        self.is_closed = False

    def start(self) -> None:
        """Do nothing: there is nothing to prepare."""

    def launch(self, spec: LaunchSpec, callbacks: Callbacks) -> InProcessWorker:
        if self.refusal is not None:
            raise self.refusal
        assert not self.is_closed
        assert spec.name not in {worker.name for worker in self.alive}, "two workers for one model"
        self._on_launch(spec.name)
        self.workers.append(InProcessWorker(spec, len(self.workers) + 1, callbacks, self._on_asked))
        return self.workers[-1]

    async def close(self) -> None:
        assert not self.alive
        self.is_closed = True

    @property
    def alive(self) -> list[InProcessWorker]:
        return [worker for worker in self.workers if worker.is_alive]

    def __getitem__(self, name: str) -> InProcessWorker:
        """Return the worker that runs this model."""
        return next(worker for worker in self.alive if worker.name == name)
