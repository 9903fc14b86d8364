"""A process that imports all of a worker's modules and starts workers by forking, in milliseconds.

The router starts it (Linux only) with one end of a socket pair; `zygote_messages` defines the messages. It forks as
soon as the program can load a model; such a worker imports the rest itself while it loads. The zygote keeps a single
thread and initialises no backend, because a fork would inherit both in a broken state. If an import starts a thread or
fails, it sends `unsafe` and forks no more, and the router spawns workers instead. It reaps its workers and ends with
the router.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping, Sequence
from typing import NoReturn

from llama_corral.common.base.user_signals import ignore_user_signals
from llama_corral.common.base.worker_reports import CONTROL_FD_ENV
from llama_corral.common.base.zygote_messages import ForkRequest, ZygoteEvent, encode_event, receive_fork

from .parent import die_with_parent

Program = Callable[[list[str], MutableMapping[str, str]], int]
WORKER = "llama_corral.worker.main:run"
IMPORTED_LATER = (
    "aiohttp.web",
    "llama_corral.worker.chat.prompt",
    "llama_corral.worker.app",
    "llama_corral.worker.serve",
)
"""Modules that `WORKER` imports while it loads a model. The zygote serves requests between their imports."""
PAUSE_S = 1.0
"""Seconds without imports after a fork, because the new worker needs the processor."""
CONTROL_FD = 3
HIGHEST_FD = 1 << 20


class _Unsafe(Exception):
    """This process must not be forked."""


def main(arguments: Sequence[str]) -> int:
    ignore_user_signals()  # forked workers inherit it
    parser = argparse.ArgumentParser(prog="llama_corral.worker.zygote")
    parser.add_argument("--socket", type=int, required=True, help="inherited descriptor")
    parser.add_argument("--router", type=int, required=True, help="process id")
    parser.add_argument("--program", default=WORKER, help="module:function that a fork runs")
    parser.add_argument("--later", nargs="*", help="modules to import when the program can already be forked")
    options = parser.parse_args(arguments)
    if options.later is None:
        options.later = IMPORTED_LATER if options.program == WORKER else ()
    die_with_parent(options.router)
    gc.disable()  # it only delays imports, which leave almost no garbage
    with socket.socket(fileno=options.socket) as connection, contextlib.suppress(ConnectionError):  # the router exited
        zygote = _Zygote(connection)
        try:
            zygote.program = _import_program(options.program)
            for name in options.later:
                zygote.serve_waiting()
                importlib.import_module(name)
                _check_threads()
        except ConnectionError:
            return 0
        except _Unsafe as error:
            return zygote.end_unsafe(str(error))
        except Exception as error:
            traceback.print_exc()
            return zygote.end_unsafe(f"{type(error).__name__}: {error}")
        gc.collect()
        gc.freeze()  # so that a garbage collection in a fork does not copy every page
        gc.enable()
        zygote.answer(ZygoteEvent("ready"))
        while not zygote.is_released:
            zygote.serve(None)
    return 0


def _import_program(spelled: str) -> Program:
    module, _, function = spelled.partition(":")
    program: Program = getattr(importlib.import_module(module), function)
    _check_threads()
    return program


def _check_threads() -> None:
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise _Unsafe(f"importing the worker started {threads - 1} threads")


class _Zygote:
    """Forks and reaps workers. `is_released` is True when the router has closed its end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.program: Program | None = None
        """None: requests are not served."""
        self.is_released = False
        self._connection = connection
        self._ids: dict[int, int] = {}
        self._forked_at = -PAUSE_S
        self._wakeup, on_signal = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(on_signal, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)

    def serve(self, timeout: float | None) -> None:
        """Wait at most `timeout` seconds (None: no limit) for a request or an exit, and handle it."""
        ready = {fd for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000)}
        if self._wakeup in ready:
            os.read(self._wakeup, 512)
            self._reap()
        if self._connection.fileno() in ready:
            received = receive_fork(self._connection)
            if received is None:
                self.is_released = True
            else:
                self._fork(*received)

    def serve_waiting(self) -> None:
        """Handle the requests that have arrived. After a fork, wait for others for `PAUSE_S` seconds."""
        self.serve(0)
        while not self.is_released and (pause := self._forked_at + PAUSE_S - time.monotonic()) > 0:
            self.serve(pause)
        if self.is_released:
            raise ConnectionError

    def end_unsafe(self, why: str) -> int:
        """Tell the router that no more workers are forked. Wait for the forked ones, then return the exit code."""
        self.program = None
        self.answer(ZygoteEvent("unsafe", message=why))
        while self._ids and not self.is_released:
            self.serve(None)
        return 1

    def answer(self, answer: ZygoteEvent) -> None:
        self._connection.sendall(encode_event(answer))

    def _fork(self, request: ForkRequest, fds: list[int]) -> None:
        pid, zygote = -1, os.getpid()
        if self.program is not None:  # else the router has already started this worker in another way
            gc.freeze()
            self._forked_at = time.monotonic()
            try:
                pid = os.fork()
            except OSError as error:
                os.write(fds[1], f"fork: {error}\n".encode())
                self.answer(ZygoteEvent("exited", request.id, code=1))
            if pid == 0:
                _become_worker(self.program, request, fds, zygote)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self._ids[pid] = request.id
            self.answer(ZygoteEvent("forked", request.id, pid))

    def _reap(self) -> None:
        while self._ids:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            _kill_group(ended.si_pid)  # before reaping, while the process id cannot be reused
            _, status = os.waitpid(ended.si_pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self.answer(ZygoteEvent("exited", self._ids.pop(ended.si_pid), ended.si_pid, code))


def _become_worker(program: Program, request: ForkRequest, fds: list[int], zygote: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        die_with_parent(zygote)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stdin, output, control = fds
        for fd, number in ((stdin, 0), (output, 1), (output, 2), (control, CONTROL_FD)):
            os.dup2(fd, number)
        os.closerange(CONTROL_FD + 1, HIGHEST_FD)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.clear()
        os.environ.update(request.environ)
        os.environ[CONTROL_FD_ENV] = str(CONTROL_FD)
        sys.argv = [f"llama_corral.worker ({request.name})", *request.argv]
        code = program(request.argv, os.environ)
    except SystemExit as exit_asked:
        code = exit_asked.code if isinstance(exit_asked.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _kill_group(pid: int) -> None:
    """Kill the processes that the worker `pid` started and left running."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
