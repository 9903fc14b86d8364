"""Processes of tools: each has its own process group and a time limit, and leaves no process behind.

`Processes` owns all processes of one server. They end when that server ends, even with SIGKILL: a guard process in
each group waits until the server's end of a pipe is closed, and then kills the group.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from msgspec import Struct

from ..base.open_files import current_limit, original_limit

SHELL = "/bin/sh"
GUARD = '( (read -r _ < "$0"; kill -KILL 0) & ) </dev/null >/dev/null 2>&1; exec "$@"'
"""The command replaces the shell, so its process leads the group; the guard is not the command's child."""
LOWER_LIMIT = "ulimit -S -n {} 2>/dev/null; "
"""Gives the command the limit of open files with which this server was started."""
DRAIN_S = 1.0
"""Seconds to read the rest of a dead group's output. A process that left the group may keep the pipes open longer."""
STDIN, STDOUT, STDERR = 0, 1, 2

OnOutput = Callable[[int, bytes], None]
"""Called with the descriptor (1 or 2) and the data written to it."""


class ProcessGroup(asyncio.SubprocessProtocol):
    """A command and all processes that it starts."""

    def __init__(self, on_output: OnOutput, lifeline: int) -> None:
        self.exited = asyncio.Event()
        """Set when the command exited; other processes of its group may run until `kill`."""
        self.drained = asyncio.Event()
        self.exit_code = -1
        """The exit code as in a shell: for a signal, 128 plus its number."""
        self._on_output = on_output
        self._lifeline: int | None = lifeline
        self._transport: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)  # uvloop's own is no subclass

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._on_output(fd, data)

    def process_exited(self) -> None:
        code = self._transport.get_returncode() if self._transport else None
        if code is not None:
            self.exit_code = code if code >= 0 else 128 - code
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.exited.set()
        self.drained.set()

    def write(self, data: bytes) -> None:
        pipe = self._stdin()
        if pipe is not None and not pipe.is_closing():
            pipe.write(data)

    def close_stdin(self) -> None:
        pipe = self._stdin()
        if pipe is not None:
            pipe.close()

    def _stdin(self) -> asyncio.WriteTransport | None:
        pipe = self._transport.get_pipe_transport(STDIN) if self._transport else None
        return cast("asyncio.WriteTransport | None", pipe)

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group. The guard is in it too, so until `kill` the group's id cannot be reused."""
        if self._transport is not None and self._lifeline is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._transport.get_pid(), number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    async def ends_within(self, seconds: float) -> bool:
        """Wait at most `seconds`; return True if the command exited."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.exited.wait()
        return self.exited.is_set()

    async def end(self) -> None:
        """Kill the remaining processes and release all resources."""
        self.kill()
        if self._transport is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self.drained.wait()
        self._transport.close()


class CommandResult(Struct, frozen=True):
    exit_code: int
    output: bytes
    """The beginning of the output, up to the limit."""
    errors: bytes = b""
    is_cut: bool = False
    timed_out: bool = False


class _OutputCollector:
    """Keeps and forwards output up to the limit, and discards the rest, so that the command does not block."""

    def __init__(self, limit: int, on_output: Callable[[bytes], None] | None) -> None:
        self.kept = bytearray()
        self.errors = bytearray()
        self.is_cut = False
        self._limit = limit
        self._on_output = on_output

    def feed(self, fd: int, data: bytes) -> None:
        if fd == STDERR:
            self.errors += data[: 4096 - len(self.errors)]
            return
        taken = data[: self._limit - len(self.kept)]
        self.is_cut = self.is_cut or len(taken) < len(data)
        self.kept += taken
        if taken and self._on_output:
            self._on_output(taken)


class Processes:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)
        self.is_closed = False
        self._running: set[ProcessGroup] = set()

    async def start(
        self,
        command: Sequence[str],
        on_output: OnOutput,
        *,
        cwd: str | None = None,
        environ: Mapping[str, str] | None = None,
        merge_errors: bool = False,
    ) -> ProcessGroup:
        """Start a command. The caller must end it with `finish`. Raise OSError; ValueError for NUL in the command."""
        if self.is_closed:
            raise OSError(0, "the server is stopping")
        if any("\0" in word for word in command):  # uvloop would truncate it there
            raise ValueError("a NUL character in a command")
        reading, writing = os.pipe()
        group = ProcessGroup(on_output, writing)
        limit = original_limit()
        script = GUARD if limit is None or limit == current_limit() else LOWER_LIMIT.format(limit) + GUARD
        starting = asyncio.ensure_future(
            asyncio.get_running_loop().subprocess_exec(
                lambda: group,
                *(SHELL, "-c", script, f"/dev/fd/{reading}", *command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT if merge_errors else asyncio.subprocess.PIPE,
                pass_fds=(reading,),
                start_new_session=True,
                cwd=cwd,
                env=self.environ if environ is None else environ,
            )
        )
        try:
            await asyncio.shield(starting)
            if self.is_closed:
                raise OSError(0, "the server is stopping")
        except BaseException:
            await asyncio.gather(starting, return_exceptions=True)  # the group can be ended only after the start
            await group.end()
            raise
        finally:
            os.close(reading)
        self._running.add(group)
        return group

    async def finish(self, group: ProcessGroup) -> None:
        self._running.discard(group)
        await group.end()

    async def run(
        self,
        command: Sequence[str],
        *,
        seconds: float,
        limit: int,
        stdin: bytes = b"",
        cwd: str | None = None,
        merge_errors: bool = False,
        on_output: Callable[[bytes], None] | None = None,
    ) -> CommandResult:
        """Run a command to its end or for `seconds`, then end its whole group. Raise OSError, ValueError as `start`."""
        collected = _OutputCollector(limit, on_output)
        group = await self.start(command, collected.feed, cwd=cwd, merge_errors=merge_errors)
        try:
            group.write(stdin)
            group.close_stdin()
            timed_out = not await group.ends_within(seconds)
        finally:
            await self.finish(group)
        return CommandResult(
            exit_code=group.exit_code,
            output=bytes(collected.kept),
            errors=bytes(collected.errors),
            is_cut=collected.is_cut,
            timed_out=timed_out,
        )

    def close(self) -> None:
        """Kill all processes; callers that wait for them are notified of their end."""
        self.is_closed = True
        for group in self._running:
            group.kill()
