"""Base class that reads the tool calls of an answer in any format, one after another, until no call follows.

`parser` creates the reader for a format and runs it at each mark of calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from ..formats.formats import Span
from ..tools import FunctionTool
from .deltas import DeltaWriter
from .reader import Parsing, TextReader


class CallsReader(ABC):
    def __init__(
        self, mark: str, section: Span, tools: Mapping[str, FunctionTool], reader: TextReader, writer: DeltaWriter
    ) -> None:
        """`mark`: the text that calls begin with; `section`: the marks around all calls."""
        self.mark = mark
        self._section, self._tools, self._reader, self._writer = section, tools, reader, writer

    def read(self) -> Parsing[bool]:
        """Return True if there was a call, or the beginning of one at a truncated end. If not, nothing is consumed."""
        reader, n_before = self._reader, self._writer.n_calls
        if (yield from self._opens()):
            while (yield from self._call()) and (yield from self._has_another_call()):
                reader.mark()
        reader.rewind()
        if self._writer.n_calls > n_before:
            yield from self._close()
        elif not reader.is_undecided:
            return False
        if reader.is_undecided:
            reader.skip_rest()  # the beginning of a mark or of a call is no content
        return True

    def _opens(self) -> Parsing[bool]:
        """Read the text before the first call."""
        return self._reader.word(self._section.start)

    @abstractmethod
    def _call(self) -> Parsing[bool]:
        """Read one call; unmark the reader once it is certainly a call, close it once its end is read.

        Return False if it is none.
        """

    @abstractmethod
    def _has_another_call(self) -> Parsing[bool]:
        """Return True if another call seems to follow. The separator is consumed."""

    def _close(self) -> Parsing[None]:
        """Read the text after the last call."""
        yield from self._reader.word(self._section.end)
