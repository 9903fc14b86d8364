"""A process that has imported all of a worker's modules and starts workers by forking, in milliseconds.

The router starts it (Linux only) with one end of a socket pair; `zygote_messages` defines the messages. It keeps a
single thread and initialises no backend, because a fork would inherit both in a broken state. If an import starts a
thread or fails, it sends `unsafe` and the router spawns workers instead. It reaps its workers and ends with the router.
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
import traceback
from collections.abc import Callable, MutableMapping, Sequence
from typing import NoReturn

from llama_corral.common.base.worker_reports import CONTROL_FD_ENV
from llama_corral.common.base.zygote_messages import ForkRequest, ZygoteEvent, encode_event, receive_fork

from .parent import die_with_parent

Program = Callable[[list[str], MutableMapping[str, str]], int]
WORKER = "llama_corral.worker.main:run"
PRELOADED = ("llama_corral.worker.app", "llama_corral.worker.engine.runner", "uvloop")
"""Modules imported together with the worker's program, which itself imports them only when it runs."""
CONTROL_FD = 3
HIGHEST_FD = 1 << 20


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="llama_corral.worker.zygote")
    parser.add_argument("--socket", type=int, required=True, help="inherited descriptor")
    parser.add_argument("--router", type=int, required=True, help="process id")
    parser.add_argument("--program", default=WORKER, help="module:function that a fork runs")
    options = parser.parse_args(arguments)
    die_with_parent(options.router)
    with socket.socket(fileno=options.socket) as connection:
        try:
            program = _import_program(options.program)
        except Exception as error:
            traceback.print_exc()
            _answer(connection, ZygoteEvent("unsafe", message=f"{type(error).__name__}: {error}"))
            return 1
        if (threads := len(os.listdir("/proc/self/task"))) > 1:
            _answer(connection, ZygoteEvent("unsafe", message=f"importing the worker started {threads - 1} threads"))
            return 1
        with contextlib.suppress(ConnectionError):  # the router has exited
            _answer(connection, ZygoteEvent("ready"))
            _serve(connection, program)
    return 0


def _import_program(spelled: str) -> Program:
    module, _, function = spelled.partition(":")
    program: Program = getattr(importlib.import_module(module), function)
    if spelled == WORKER:
        for name in PRELOADED:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a garbage collection in a fork does not copy every page
    return program


def _serve(connection: socket.socket, program: Program) -> None:
    """Fork and reap workers until the router closes its end of the socket."""
    ids: dict[int, int] = {}
    wakeup, on_signal = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(on_signal, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if wakeup in ready:
            os.read(wakeup, 512)
            _reap(connection, ids)
        if connection.fileno() in ready:
            received = receive_fork(connection)
            if received is None:
                return
            _fork(connection, program, *received, ids)


def _fork(
    connection: socket.socket, program: Program, request: ForkRequest, fds: list[int], ids: dict[int, int]
) -> None:
    zygote = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.write(fds[1], f"fork: {error}\n".encode())
        _answer(connection, ZygoteEvent("exited", request.id, code=1))
        pid = -1
    if pid == 0:
        _become_worker(program, request, fds, zygote)
    for fd in fds:
        os.close(fd)
    if pid > 0:
        ids[pid] = request.id
        _answer(connection, ZygoteEvent("forked", request.id, pid))


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


def _reap(connection: socket.socket, ids: dict[int, int]) -> None:
    while ids:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return
        _kill_group(ended.si_pid)  # before reaping, while the process id cannot be reused
        _, status = os.waitpid(ended.si_pid, 0)
        _answer(
            connection, ZygoteEvent("exited", ids.pop(ended.si_pid), ended.si_pid, os.waitstatus_to_exitcode(status))
        )


def _kill_group(pid: int) -> None:
    """Kill the processes that the worker `pid` started and left running."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _answer(connection: socket.socket, answer: ZygoteEvent) -> None:
    connection.sendall(encode_event(answer))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
