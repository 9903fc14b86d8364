"""Start a worker as a new Python interpreter. This works on every platform, but each start repeats all imports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

from llama_corral.common.base.worker_reports import CONTROL_FD_ENV

from .launcher import Callbacks, LaunchSpec
from .worker_process import ChildProcess, SocketDirectory, worker_environ

WORKER_COMMAND = (sys.executable, "-P", "-m", "llama_corral.worker")
"""-P: a folder with our name in the working directory must not be imported instead."""


class SpawnLauncher:
    """Implements `launcher.Launcher`."""

    def __init__(self, environ: Mapping[str, str], command: tuple[str, ...] = WORKER_COMMAND) -> None:
        self.command = command
        self._environ = worker_environ(dict(environ))
        self._sockets = SocketDirectory()

    def start(self) -> None:
        self._sockets.prepare()

    def launch(self, spec: LaunchSpec, callbacks: Callbacks) -> ChildProcess:
        child = ChildProcess(spec, self._sockets.next_path(), self.command, callbacks)
        try:
            self.run(child)
        except OSError:
            child.discard()
            raise
        return child

    def run(self, child: ChildProcess) -> None:
        """Start the process. The calling thread must live as long as the router: the worker dies with that thread."""
        stdin, output, control = child.descriptors
        process = subprocess.Popen(
            [*self.command, *child.options],
            stdin=stdin,
            stdout=output,
            stderr=output,
            pass_fds=(control,),
            start_new_session=True,
            env={**self._environ, **child.environ, CONTROL_FD_ENV: str(control)},
        )
        child.started(process.pid)
        loop = asyncio.get_running_loop()
        threading.Thread(target=_await_exit, args=(process, child, loop), name="worker-exit", daemon=True).start()

    async def close(self) -> None:
        self._sockets.remove()


def _await_exit(process: subprocess.Popen[bytes], child: ChildProcess, loop: asyncio.AbstractEventLoop) -> None:
    """Wait for the exit, in a separate thread, since not every platform can notify an event loop of it."""
    with contextlib.suppress(AttributeError, ChildProcessError):  # macOS has no waitid
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the processes that it started must not outlive it
    returncode = process.wait()
    with contextlib.suppress(RuntimeError):  # the loop is closed: the exit has no reader
        loop.call_soon_threadsafe(child.finish, returncode)
