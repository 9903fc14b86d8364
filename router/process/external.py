"""Start other programs instead of our workers (`cmd` in a presets file), each under a small shim process.

The shim has the same pipes as a worker and reports when the program is ready. For the router, the only difference is
that the program listens on a TCP port.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping

import msgspec
from llama_corral.common.base.open_files import original_limit
from llama_corral.common.base.worker_reports import HEARTBEAT_S
from llama_corral.presets.backends import PORT, Backend

from .launcher import Callbacks, Launcher, LaunchSpec, Worker
from .shim_plan import ShimPlan
from .spawn import SpawnLauncher
from .worker_process import ChildProcess

SHIM_COMMAND = (sys.executable, "-P", "-m", "llama_corral.router.process.external_shim")
QUESTIONS = 10
"""Health checks within the time after which a program counts as stuck. Some may fail, and each may log a line."""
LONGEST_PAUSE_S = 30.0


def health_check_interval(worker_timeout: float) -> float:
    """Return the seconds between two health checks of a program; 0: no checks."""
    return min(LONGEST_PAUSE_S, max(HEARTBEAT_S, worker_timeout / QUESTIONS)) if worker_timeout else 0.0


class CombinedLauncher:
    """Implements `launcher.Launcher`: one launcher for our own workers, another for external programs."""

    def __init__(self, workers: Launcher, environ: Mapping[str, str], *, ask_every: float = 0.0) -> None:
        """`ask_every`: seconds between two health checks of a program; 0: none."""
        self._workers = workers
        self._backends = BackendLauncher(environ, ask_every)

    @property
    def command(self) -> tuple[str, ...]:
        return self._workers.command

    def start(self) -> None:
        self._workers.start()

    def launch(self, spec: LaunchSpec, callbacks: Callbacks) -> Worker:
        chosen = self._workers if spec.backend is None else self._backends
        return chosen.launch(spec, callbacks)

    async def close(self) -> None:
        await self._workers.close()
        await self._backends.close()


class BackendLauncher(SpawnLauncher):
    def __init__(self, environ: Mapping[str, str], ask_every: float = 0.0) -> None:
        super().__init__(environ, SHIM_COMMAND)
        self._ask_every = ask_every
        self._environ = dict(environ)  # without the variables that only our workers need
        self._running: dict[int, ChildProcess] = {}

    def launch(self, spec: LaunchSpec, callbacks: Callbacks) -> ChildProcess:
        assert spec.backend is not None
        port = self._free_port() if PORT in spec.backend.address else 0
        child = _ExternalProgram(spec, spec.backend, port, self._ask_every, callbacks)
        try:
            self.run(child)
        except OSError:
            child.discard()
            raise
        if port:
            self._running[port] = child
        return child

    def _free_port(self) -> int:
        """Return a port on which no process listens now.

        The shim checks later that the process that listens there belongs to its program.
        """
        self._running = {port: child for port, child in self._running.items() if not child.is_over}
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in self._running:
                return port


class _ExternalProgram(ChildProcess):
    """The shim process, presented with the command line of its program."""

    def __init__(self, spec: LaunchSpec, backend: Backend, port: int, ask_every: float, callbacks: Callbacks) -> None:
        def filled(text: str) -> str:
            return text.replace(PORT, str(port))

        super().__init__(spec, filled(backend.address), (), callbacks)
        self.environ = {name: filled(value) for name, value in spec.environ.items()}
        self.arguments = tuple(filled(word) for word in backend.command)
        plan = ShimPlan(
            command=self.arguments,
            stop_command=tuple(filled(word) for word in backend.stop_command),
            endpoint=self.endpoint,
            owns_port=port != 0,
            health=backend.path + backend.health if backend.health else "",
            load_timeout=backend.load_timeout,
            ask_every=ask_every if backend.health else 0.0,
            measures=not (backend.host_bytes or any(backend.device_bytes)),
            open_files=original_limit(),
        )
        self.options = (msgspec.json.encode(plan).decode(),)
