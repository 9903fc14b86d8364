"""Read the pipes between router and worker: the worker's log and its reports, line by line.

Everything is read on the event loop, at most `CHUNK` bytes at a time, so that a worker that floods its log blocks
neither the others nor itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable

import msgspec
from llama_corral.common.base import worker_reports
from llama_corral.common.base.logs import read_relayed
from llama_corral.common.base.worker_reports import WorkerReport

CHUNK = 16 * 1024
"""Bytes read per iteration of the event loop. Relaying them takes about a millisecond."""
MAX_LINE_LENGTH = 1024 * 1024
"""Bytes of an incomplete line that are buffered; a longer line is dropped."""
LAST_BYTES = 1024 * 1024
"""Maximum bytes read after the exit. A pipe contains less, unless a remaining grandchild still writes."""
MAX_LOG_LINES = 40
"""Last lines kept to explain a failure, such as a native stack trace or the end of a load."""
MAX_LOG_CHARACTERS = 400
"""Characters kept of each line, so that one worker's kept log is smaller than 64 KB."""

log = logging.getLogger("corral.router")
worker_log = logging.getLogger("corral.workers")


class LineReader:
    """Passes the complete lines of a non-blocking descriptor to `on_line`, without newlines. Owns the descriptor."""

    def __init__(self, fd: int, on_line: Callable[[bytes], None]) -> None:
        os.set_blocking(fd, False)
        self._fd: int | None = fd
        self._on_line = on_line
        self._held = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Read what is already in the pipe, then close it. To be called after the writer's exit."""
        for _ in range(LAST_BYTES // CHUNK):
            if not self._read():
                break
        self._end()

    def _read(self) -> bool:
        if self._fd is None:
            return False
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._feed(data)
        else:
            self._end()
        return bool(data)

    def _feed(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(self._held) + lines[0]
            self._held.clear()
            for line in lines:
                self._on_line(line)
        self._held += rest
        if len(self._held) > MAX_LINE_LENGTH:
            self._held.clear()

    def _end(self) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        self._loop.remove_reader(fd)
        os.close(fd)
        if self._held:
            self._on_line(bytes(self._held))
            self._held.clear()


class WorkerLog:
    """Copies a worker's log to ours as `[pid/name] line`, at the level of the line, and keeps its last lines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._prefix = f"[?/{name}] "
        self._kept: deque[str] = deque(maxlen=MAX_LOG_LINES)

    def set_pid(self, pid: int) -> None:
        self._prefix = f"[{pid}/{self._name}] "

    def feed(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        if text:
            self._kept.append(text[:MAX_LOG_CHARACTERS])
        level, text = read_relayed(text)
        worker_log.log(level, "%s%s", self._prefix, text)

    @property
    def last_lines(self) -> tuple[str, ...]:
        return tuple(self._kept)


def report_parser(name: str, on_report: Callable[[WorkerReport], None]) -> Callable[[bytes], None]:
    """Return a function that parses lines of the control pipe into reports. It logs and ignores an invalid line."""

    def on_line(line: bytes) -> None:
        if not line.strip():
            return
        try:
            report = worker_reports.decode(line)
        except msgspec.MsgspecError as error:
            log.warning("name=%s sent an invalid report on its control pipe (%s): %.80r", name, error, line)
            return
        on_report(report)

    return on_line


def write_line(fd: int, line: bytes) -> None:
    """Write a line to a pipe. Ignore a reader that has ended or is stuck: a deadline ends such a worker."""
    with contextlib.suppress(BrokenPipeError, BlockingIOError):
        os.write(fd, line)
