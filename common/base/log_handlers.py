"""The handler that writes log lines to a stream: those of the access log in groups, all others at once."""

from __future__ import annotations

import asyncio
import logging
from typing import TextIO

MAY_WAIT = "may_wait"
"""Attribute of a record whose line may be written later."""
WAIT_S = 0.05
"""Seconds that a line of the access log waits at most for others."""


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each line at once, except those that may wait: they are written together, at most WAIT_S later.

    A busy router answers thousands of requests per second, and writing a line takes longer than building it. Lines
    keep their order: any other line first writes those that wait. Where no event loop runs, no line waits. A process
    that is killed loses the lines of its last WAIT_S.
    """

    def __init__(self, stream: TextIO, *, closes: bool = False) -> None:
        """`closes`: True if the stream belongs to the handler and is closed with it."""
        super().__init__(stream)
        self._closes = closes
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that will write the waiting lines."""
        self._last: logging.LogRecord | None = None
        """The record of the last line that waits, which an error in writing is reported with."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._waiting.append(line + self.terminator)
        self._last = record
        if not (hasattr(record, MAY_WAIT) and self._will_be_written()):
            self.flush()

    def _will_be_written(self) -> bool:
        """Return whether this thread's event loop will write the waiting lines."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(WAIT_S, self._write_waiting)
        return True

    def _write_waiting(self) -> None:
        self._loop = None
        self.flush()

    def flush(self) -> None:
        self.acquire()
        try:
            lines, self._waiting = self._waiting, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()
        except Exception:
            if self._last is None:
                raise
            self.handleError(self._last)
        finally:
            self.release()

    def close(self) -> None:
        self.flush()
        if self._closes:
            self.stream.close()
        super().close()
