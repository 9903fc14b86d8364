"""Reading the calls of an answer, whatever they look like: one after another, until what follows is none.

`parser` makes the reader of a format, and asks it once the text is where calls may begin.
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
        """`section`: the marks around all calls."""
        self.mark = mark
        """What calls begin with."""
        self._section, self._tools, self._reader, self._writer = section, tools, reader, writer

    def read(self) -> Parsing[bool]:
        """Whether there was a call; if not, nothing is read."""
        n_before = self._writer.n_calls
        if (yield from self._opens()):
            while (yield from self._call()) and (yield from self._has_another_call()):
                self._reader.mark()
        self._reader.rewind()
        if self._writer.n_calls == n_before:
            return False
        yield from self._close()
        return True

    def _opens(self) -> Parsing[bool]:
        """Reads what comes before the first call."""
        return self._reader.word(self._section.start)

    @abstractmethod
    def _call(self) -> Parsing[bool]:
        """Reads one call, and releases the reader once it is certain that it is one. False: it is none."""

    @abstractmethod
    def _has_another_call(self) -> Parsing[bool]:
        """Whether one more call seems to follow. What separates it from the last one is read."""

    def _close(self) -> Parsing[None]:
        """Reads what comes behind the last call."""
        yield from self._reader.word(self._section.end)
