"""Start workers by forking a process that has done all imports (worker/zygote.py), in milliseconds. Linux only.

`zygote_start` starts it, usually before the router has done its own imports. Requests sent before it can fork wait in
its socket. When it dies, its forks die too, and the next launch starts a new zygote. When it does not answer in time,
another one is started, and it is killed after the last of its forks has ended. If it reports that it cannot fork
safely, `spawn` is used from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

import msgspec
from llama_corral.common.base.zygote_messages import ForkRequest, ZygoteEvent, decode_event, encode_fork

from .launcher import Callbacks, Launcher, LaunchSpec
from .pipes import LineReader
from .spawn import WORKER_COMMAND, SpawnLauncher
from .worker_process import ChildProcess, SocketDirectory, worker_environ
from .zygote_start import ZYGOTE_COMMAND as ZYGOTE_COMMAND
from .zygote_start import start_zygote, take_early

log = logging.getLogger("corral.router")

ANSWER_S = 15.0
"""Seconds in which a zygote must report a fork or an exit. It takes milliseconds, and a second between two imports."""
FIRST_ANSWER_S = 60.0
"""The same before its first report: until then it imports, which takes long on a slow disk."""


def best_launcher(environ: Mapping[str, str]) -> Launcher:
    """Return the fastest launcher that is safe on this platform."""
    return ZygoteLauncher(environ) if sys.platform.startswith("linux") else SpawnLauncher(environ)


class ZygoteLauncher:
    """Implements `launcher.Launcher`."""

    def __init__(
        self,
        environ: Mapping[str, str],
        command: tuple[str, ...] = ZYGOTE_COMMAND,
        worker_command: tuple[str, ...] = WORKER_COMMAND,
    ) -> None:
        self.command = worker_command
        self._zygote_command = command
        self._environ = worker_environ(dict(environ))
        self._sockets = SocketDirectory()
        self._spawn = SpawnLauncher(environ, worker_command)
        self._zygote: _Zygote | None = None
        self._silent: set[_Zygote] = set()
        """Zygotes that do not answer, but have forks that run."""
        self._is_unsafe = False

    def start(self) -> None:
        self._sockets.prepare()
        if self._zygote is None and not self._is_unsafe:
            self._zygote = _Zygote(self._zygote_command, self._environ, self)

    def launch(self, spec: LaunchSpec, callbacks: Callbacks) -> ChildProcess:
        child = ChildProcess(spec, self._sockets.next_path(), self.command, callbacks)
        try:
            self._run(child)
        except OSError:
            child.discard()
            raise
        return child

    async def close(self) -> None:
        zygotes, self._zygote, self._silent = [*self._silent, self._zygote], None, set()
        for zygote in zygotes:
            if zygote is not None:
                await zygote.close()
        self._sockets.remove()

    def _run(self, child: ChildProcess) -> None:
        self.start()
        if self._zygote is None or self._is_unsafe:
            self._spawn.run(child)
        else:
            self._zygote.fork(child)

    def on_lost(self, zygote: _Zygote, pending: Iterable[ChildProcess]) -> None:
        """Start the workers that the ended zygote has not forked yet with a new zygote or with `spawn`."""
        if zygote in self._silent:
            self._silent.remove(zygote)
            return
        self._zygote = None
        self._is_unsafe = self._is_unsafe or not zygote.can_fork
        self._start_again(pending)

    def on_silent(self, zygote: _Zygote, pending: Iterable[ChildProcess]) -> None:
        """Use another zygote from now on, also for the workers that this one was to fork."""
        self._silent.add(zygote)
        if self._zygote is zygote:
            self._zygote = None
        self._is_unsafe = self._is_unsafe or not zygote.can_fork
        self._start_again(pending)

    def on_unsafe(self, pending: Iterable[ChildProcess]) -> None:
        """Spawn workers from now on, also those that the zygote has not forked. It stays until its forks have ended."""
        self._is_unsafe = True
        self._start_again(pending)

    def _start_again(self, pending: Iterable[ChildProcess]) -> None:
        for child in pending:
            try:
                self._run(child)
            except OSError as error:
                log.error("name=%s: the worker could not be started: %s", child.name, error)
                child.finish(1)


class _Zygote:
    """One zygote process, and the children that it has forked or is to fork."""

    def __init__(
        self,
        command: tuple[str, ...],
        environ: Mapping[str, str],
        launcher: ZygoteLauncher,
    ) -> None:
        self.can_fork = False
        self._launcher = launcher
        self._environ = environ
        self._is_silent = False
        self._children: dict[int, ChildProcess] = {}
        self._ended: set[int] = set()
        """Children whose end it has not reported yet."""
        self._watches: dict[int, int] = {}
        """Process descriptors of the children that run."""
        self._deadlines: dict[int, asyncio.TimerHandle] = {}
        """Of the reports that it owes, by the child's number."""
        self._numbers = count(1)
        self._outbox: deque[_Request] = deque()
        self._loop = asyncio.get_running_loop()
        early = take_early() if command == ZYGOTE_COMMAND else None
        self._process, self._socket = early or start_zygote(command, environ)
        self._socket.setblocking(False)
        self._reader = LineReader(os.dup(self._socket.fileno()), self._on_line)
        self._watch = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._watch, self._on_exit)

    def fork(self, child: ChildProcess) -> None:
        number = next(self._numbers)
        self._children[number] = child
        environ = {**self._environ, **child.environ}
        message = encode_fork(ForkRequest(number, child.name, list(child.options), environ))
        self._outbox.append(_Request(message, child.descriptors))
        self._expect_report(number)
        self._flush()

    async def close(self) -> None:
        """End and reap the zygote. To be called after the last child's exit.

        It is killed, since it may still import for seconds, and it has nothing to finish.
        """
        self._release()
        for number in tuple(self._watches):
            self._unwatch(number)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def _flush(self) -> None:
        """Send as much as the socket accepts. A zygote that is still importing reads it later."""
        try:
            while self._outbox:
                if self._outbox[0].send(self._socket):
                    self._outbox.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._outbox.clear()  # the zygote has ended: its process descriptor reports that
        self._loop.remove_writer(self._socket)

    def _on_line(self, line: bytes) -> None:
        try:
            answer = decode_event(line)
        except msgspec.MsgspecError as error:
            log.warning("the zygote sent an invalid answer (%s): %.80r", error, line)
            return
        self._follow(answer)

    def _follow(self, answer: ZygoteEvent) -> None:
        child = self._children.get(answer.id)
        if answer.event == "ready":
            self.can_fork = True
            log.debug("the zygote is ready")
        elif answer.event == "unsafe":
            log.warning("workers are spawned instead of forked: %s", answer.message)
            self._launcher.on_unsafe(self._take_pending())
        elif answer.event == "forked" and child is None:  # it was silent, and this worker was started in another way
            with contextlib.suppress(ProcessLookupError):
                os.kill(answer.pid, signal.SIGKILL)
        elif answer.event == "forked" and child is not None:
            self.can_fork = True
            self._got_report(answer.id)
            child.started(answer.pid)
            self._watch_child(answer.id, answer.pid)
        elif child is not None:
            self._finish(answer.id, answer.code)

    def _on_exit(self) -> None:
        """Handle the zygote's end, which its process descriptor reports.

        The socket does not: a reset with unread data is an error that uvloop does not report.
        """
        self._release()
        self._process.wait()
        if not self._is_silent:
            log.log(logging.WARNING if self.can_fork else logging.DEBUG, "the zygote has ended")
        pending = self._take_pending()
        self._is_silent, was_silent = True, self._is_silent
        for number, child in tuple(self._children.items()):
            child.kill()
            if number not in self._watches:
                self._loop.call_soon(self._finish, number, -signal.SIGKILL)
        self._launcher.on_lost(self, () if was_silent else pending)

    # -- reports that do not come ------------------------------------------------------------------------------------

    def _expect_report(self, number: int) -> None:
        seconds = ANSWER_S if self.can_fork else FIRST_ANSWER_S
        self._deadlines[number] = self._loop.call_later(seconds, self._give_up, seconds)

    def _got_report(self, number: int) -> None:
        if deadline := self._deadlines.pop(number, None):
            deadline.cancel()

    def _watch_child(self, number: int, pid: int) -> None:
        """Notice the end of a child, because only a zygote that runs reports it."""
        try:
            self._watches[number] = watch = os.pidfd_open(pid)
        except OSError:  # it has ended, or there are too many descriptors: the zygote reports its end
            return
        self._loop.add_reader(watch, self._on_child_end, number)

    def _unwatch(self, number: int) -> None:
        if (watch := self._watches.pop(number, None)) is not None:
            self._loop.remove_reader(watch)
            os.close(watch)

    def _on_child_end(self, number: int) -> None:
        self._unwatch(number)
        child = self._children[number]
        assert child.pid is not None
        code = _exit_code(child.pid)
        if self._is_silent and code is not None:
            self._finish_unreported(number, code)
        else:  # also if a zygote that was silent goes on: it knows the code of a process that it has reaped
            self._ended.add(number)
            self._expect_report(number)

    def _give_up(self, seconds: float) -> None:
        """Do without the zygote. Its forks go on: they would die with it."""
        was_silent, self._is_silent = self._is_silent, True
        pending = self._take_pending()
        for number in tuple(self._ended):
            child = self._children[number]
            assert child.pid is not None
            self._finish_unreported(number, _exit_code(child.pid))
        if not was_silent:
            log.warning("the zygote has not answered for %g s: workers are started without it", seconds)
            self._launcher.on_silent(self, pending)
        self._end_if_unused()

    def _finish_unreported(self, number: int, code: int | None) -> None:
        self._children[number].kill()  # the processes that it started, before its number can be used again
        self._finish(number, -signal.SIGKILL if code is None else code)

    def _finish(self, number: int, code: int) -> None:
        self._got_report(number)
        self._unwatch(number)
        self._ended.discard(number)
        if (child := self._children.pop(number, None)) is not None:
            child.finish(code)
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._is_silent and not self._children and self._process.returncode is None:
            self._process.kill()  # `_on_exit` follows

    def _take_pending(self) -> list[ChildProcess]:
        """Remove and return the children that are not forked."""
        pending = {number: child for number, child in self._children.items() if child.pid is None}
        for number in pending:
            self._got_report(number)
        self._children = {number: child for number, child in self._children.items() if number not in pending}
        self._outbox = deque(request for request in self._outbox if request.is_begun)
        return list(pending.values())

    def _release(self) -> None:
        """Close everything. Read the last lines first: they may contain the reason why the zygote ended."""
        for number in tuple(self._deadlines):
            self._got_report(number)
        self._loop.remove_reader(self._watch)
        os.close(self._watch)
        self._reader.close()
        self._loop.remove_writer(self._socket)  # only now: a child's exit may have requested another fork
        self._socket.close()


def _exit_code(pid: int) -> int | None:
    """Return the exit code of a process that has ended; None if its parent has reaped it already."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return os.waitstatus_to_exitcode(int(facts[-1])) if facts[0] == "Z" else None
    except (OSError, ValueError, IndexError):
        return None


class _Request:
    """A message to be sent, with the descriptors that are sent with its first byte."""

    def __init__(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        self._data = data
        self._descriptors = descriptors

    @property
    def is_begun(self) -> bool:
        """True if a part is sent; then the zygote waits for the rest."""
        return not self._descriptors

    def send(self, connection: socket.socket) -> bool:
        """Send as much as possible. Return True if the whole message is sent."""
        if self._descriptors:
            count = socket.send_fds(connection, [self._data], self._descriptors)
            self._descriptors = ()
        else:
            count = connection.send(self._data)
        self._data = self._data[count:]
        return not self._data
