"""Start workers by forking a process that has done all imports (worker/zygote.py), in milliseconds. Linux only.

`zygote_start` starts it, usually before the router has done its own imports. Requests sent before it can fork wait in
its socket. When it dies, its forks die too, and the next launch starts a new zygote. If it reports that it cannot fork
safely, `spawn` is used from then on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import count

import msgspec
from llama_corral.common.base.zygote_messages import ForkRequest, ZygoteEvent, decode_event, encode_fork

from .launcher import Callbacks, Launcher, LaunchSpec
from .pipes import LineReader
from .spawn import WORKER_COMMAND, SpawnLauncher
from .worker_process import ChildProcess, SocketDirectory, worker_environ
from .zygote_start import ZYGOTE_COMMAND as ZYGOTE_COMMAND
from .zygote_start import start_zygote, take_early

log = logging.getLogger("corral.router")


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
        self._is_unsafe = False

    def start(self) -> None:
        if self._zygote is None and not self._is_unsafe:
            self._zygote = _Zygote(self._zygote_command, self._environ, self._on_unsafe, self._on_lost)

    def launch(self, spec: LaunchSpec, callbacks: Callbacks) -> ChildProcess:
        child = ChildProcess(spec, self._sockets.next_path(), self.command, callbacks)
        try:
            self._run(child)
        except OSError:
            child.discard()
            raise
        return child

    async def close(self) -> None:
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.close()
        self._sockets.remove()

    def _run(self, child: ChildProcess) -> None:
        self.start()
        if self._zygote is None or self._is_unsafe:
            self._spawn.run(child)
        else:
            self._zygote.fork(child)

    def _on_lost(self, could_fork: bool, pending: Iterable[ChildProcess]) -> None:
        """Start the workers that the ended zygote has not forked yet with a new zygote or with `spawn`."""
        self._zygote = None
        self._is_unsafe = self._is_unsafe or not could_fork
        self._start_again(pending)

    def _on_unsafe(self, pending: Iterable[ChildProcess]) -> None:
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
        on_unsafe: Callable[[Iterable[ChildProcess]], None],
        on_lost: Callable[[bool, Iterable[ChildProcess]], None],
    ) -> None:
        self._on_unsafe = on_unsafe
        self._on_lost = on_lost
        self._environ = environ
        self._can_fork = False
        self._children: dict[int, ChildProcess] = {}
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
        self._flush()

    async def close(self) -> None:
        """End and reap the zygote. To be called after the last child's exit.

        It is killed, since it may still import for seconds, and it has nothing to finish.
        """
        self._release()
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
            self._can_fork = True
            log.debug("the zygote is ready")
        elif answer.event == "unsafe":
            log.warning("workers are spawned instead of forked: %s", answer.message)
            self._on_unsafe(self._take_pending())
        elif child is not None and answer.event == "forked":
            self._can_fork = True
            child.started(answer.pid)
        elif child is not None:
            del self._children[answer.id]
            child.finish(answer.code)

    def _on_exit(self) -> None:
        """Handle the zygote's end, which its process descriptor reports.

        The socket does not: a reset with unread data is an error that uvloop does not report.
        """
        self._release()
        self._process.wait()
        log.log(logging.WARNING if self._can_fork else logging.DEBUG, "the zygote has ended")
        pending = self._take_pending()
        for child in self._children.values():
            self._kill_orphan(child)
        self._on_lost(self._can_fork, pending)

    def _take_pending(self) -> list[ChildProcess]:
        """Remove and return the children that are not forked."""
        pending = {number: child for number, child in self._children.items() if child.pid is None}
        self._children = {number: child for number, child in self._children.items() if number not in pending}
        self._outbox = deque(request for request in self._outbox if request.is_begun)
        return list(pending.values())

    def _release(self) -> None:
        """Close everything. Read the last lines first: they may contain the reason why the zygote ended."""
        self._loop.remove_reader(self._watch)
        os.close(self._watch)
        self._reader.close()
        self._loop.remove_writer(self._socket)  # only now: a child's exit may have requested another fork
        self._socket.close()

    def _kill_orphan(self, child: ChildProcess) -> None:
        """Kill a child of the ended zygote and wait for its exit with a process descriptor, since init reaps it."""
        assert child.pid is not None
        child.kill()
        try:
            watch = os.pidfd_open(child.pid)
        except ProcessLookupError:
            self._loop.call_soon(child.finish, -signal.SIGKILL)
            return

        def on_gone() -> None:
            self._loop.remove_reader(watch)
            os.close(watch)
            child.finish(-signal.SIGKILL)

        self._loop.add_reader(watch, on_gone)


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
