"""Manage the router's side of one worker process: its pipes, the path of its socket, its exit.

`spawn` and `zygote` create the process and call `started` and `finish`. It implements `launcher.Worker`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from itertools import count

from llama_corral.common.base.library_environment import WORKER_ENVIRON
from llama_corral.common.base.private_directory import PrivateDirectory

from .launcher import Callbacks, LaunchSpec
from .pipes import LineReader, WorkerLog, report_parser, write_line

MAX_SOCKET_PATH = 100
"""Bytes; the kernel's limit is 108 on Linux and 104 on macOS."""
_PREFIX = "corral-sockets-"


class SocketDirectory:
    """A private directory for the sockets of workers. Names are short because the length of paths is limited."""

    def __init__(self) -> None:
        longest = os.fsencode(f"{tempfile.gettempdir()}/{_PREFIX}12345678/123456.sock")
        self._directory = PrivateDirectory(_PREFIX, parent="/tmp" if len(longest) > MAX_SOCKET_PATH else "")
        self._numbers = count(1)

    def next_path(self) -> str:
        """Return the path of a new socket. Raises OSError."""
        return f"{self._directory.open()}/{next(self._numbers)}.sock"

    def prepare(self) -> None:
        """Create the directory early. If it cannot be created, `next_path` reports that."""
        with contextlib.suppress(OSError):
            self._directory.open()

    def remove(self) -> None:
        self._directory.close()


class ChildProcess:
    """Implements `launcher.Worker`."""

    def __init__(self, spec: LaunchSpec, endpoint: str, command: tuple[str, ...], callbacks: Callbacks) -> None:
        self.name = spec.name
        self.endpoint = endpoint
        self.options = (*spec.arguments, "--host", endpoint)
        self.arguments = (*command, *self.options)
        self.environ = dict(spec.environ)
        self.pid: int | None = None
        self._on_exit = callbacks.on_exit
        self._is_over = False
        self._kill_asked = False
        self._log = WorkerLog(spec.name)
        (stdin, self._stdin), (log, output), (reports, control) = _pipes(3)
        self.descriptors: tuple[int, ...] = (stdin, output, control)
        """The worker's own ends: stdin, log, control pipe; open until `started`."""
        os.set_blocking(self._stdin, False)
        self._readers = (
            LineReader(reports, report_parser(spec.name, callbacks.on_report)),
            LineReader(log, self._log.feed),
        )

    @property
    def is_over(self) -> bool:
        return self._is_over

    @property
    def last_lines(self) -> tuple[str, ...]:
        return self._log.last_lines

    def started(self, pid: int) -> None:
        self.pid = pid
        self._log.set_pid(pid)
        self._close_descriptors()
        if self._kill_asked:
            self.kill()

    def stop(self, reason: str = "") -> None:
        if not self._is_over:
            write_line(self._stdin, f"exit {' '.join(reason.split())}\n".encode(errors="replace"))

    def kill(self) -> None:
        self._kill_asked = True
        if self._is_over or self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # a new fork that does not lead a group yet
                os.kill(self.pid, signal.SIGKILL)

    def discard(self) -> None:
        """Release the pipes without a callback, because no process was created."""
        self._is_over = True
        self._release()

    def finish(self, returncode: int) -> None:
        """Read the rest of the pipes, reports first, then call `on_exit`. To be called after the process has ended."""
        if self._is_over:
            return
        self._is_over = True
        self._release()
        if "/" in self.endpoint:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.endpoint)
        self._on_exit(returncode)

    def _release(self) -> None:
        self._close_descriptors()
        for reader in self._readers:
            reader.close()
        os.close(self._stdin)

    def _close_descriptors(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = ()


def worker_environ(given: dict[str, str]) -> dict[str, str]:
    return {**WORKER_ENVIRON, **given}


def _pipes(number: int) -> list[tuple[int, int]]:
    """Create all pipes or none, so that no descriptors leak when they run out. Raises OSError."""
    pipes: list[tuple[int, int]] = []
    try:
        for _ in range(number):
            pipes.append(os.pipe())
    except OSError:
        for fd in (fd for pipe in pipes for fd in pipe):
            os.close(fd)
        raise
    return pipes
