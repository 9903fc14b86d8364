"""Text that arrives piece by piece, read as if it were all there.

A parser is a generator that yields wherever it needs more text: `yield from reader.until(…)`. What it does depends on
the text alone and never on how the text was cut, because nothing is decided before it is certain.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Parsing = Generator[None, None, T]
Emit = Callable[[str], None]

SPACE = " \t\r\n"
_SCALAR_END = frozenset(" \t\r\n,}]:<")


class TextReader:
    def __init__(self) -> None:
        self.ended = False
        """No more text will come."""
        self.truncated = False
        """… because a limit was reached, and not because the answer is over."""
        self._text = ""
        self._position = 0
        self._kept: int | None = None

    def feed(self, text: str) -> None:
        if self._kept is None and self._position:
            self._text = self._text[self._position :]
            self._position = 0
        self._text += text

    @property
    def rest(self) -> str:
        """What has arrived and is not yet read."""
        return self._text[self._position :]

    # -- going back ----------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """From here on, what is read can be taken back, or read a second time."""
        self._kept = self._position

    def unmark(self) -> None:
        self._kept = None

    def rewind(self) -> None:
        """To where `mark` was called; nowhere after `unmark`."""
        if self._kept is not None:
            self._position = self._kept
        self._kept = None

    # -- reading -------------------------------------------------------------------------------------------------------

    def peek(self) -> Parsing[str]:
        """The next character, not read yet; nothing at the end."""
        while self._position >= len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._position]

    def skip(self, n: int) -> None:
        self._position += n

    def skip_space(self) -> Parsing[None]:
        while (yield from self.peek()) in SPACE:
            if self._position >= len(self._text):  # the end
                return
            self._position += 1

    def skip_blanks(self, wanted: str) -> Parsing[None]:
        """As many of these as come, in this order."""
        for blank in wanted:
            if (yield from self.peek()) == blank:
                self._position += 1

    def literal(self, text: str) -> Parsing[bool]:
        """Reads `text` if it comes next, and nothing else if not."""
        while not self.rest.startswith(text):
            if self.ended or not text.startswith(self.rest):
                return False
            yield
        self._position += len(text)
        return True

    def word(self, text: str) -> Parsing[bool]:
        """As `literal`, whatever white space comes before; the white space stays when the word does not come."""
        stripped = text.strip()
        if not stripped:
            return True
        while True:
            rest = self.rest
            found = rest.lstrip(SPACE)
            if found.startswith(stripped):
                self._position += len(rest) - len(found) + len(stripped)
                return True
            if self.ended or not stripped.startswith(found):
                return False
            yield

    def is_next(self, text: str) -> Parsing[bool]:
        """Whether `word` would read it."""
        self.mark()
        found = yield from self.word(text)
        self.rewind()
        return found

    def until(self, markers: Sequence[str], emit: Emit) -> Parsing[str | None]:
        """Emits the text before the first of the markers, which comes next then; None: there was none, all is read."""
        while True:
            text = self.rest
            at, marker = first_of(text, markers)
            certain = len(text) if self.ended else len(text) - partial_end(text, markers)
            if marker is not None and (at < certain or self.ended):
                self._emit(at, emit)
                return marker
            self._emit(certain, emit)
            if self.ended:
                return None
            yield

    def text_until(self, markers: Sequence[str]) -> Parsing[tuple[str, str | None]]:
        """The text itself, once the marker has come."""
        parts: list[str] = []
        marker = yield from self.until(markers, parts.append)
        return "".join(parts), marker

    def _emit(self, n: int, emit: Emit) -> None:
        if n > 0:
            emit(self._text[self._position : self._position + n])
            self._position += n

    # -- JSON ----------------------------------------------------------------------------------------------------------

    def json(self, emit: Emit) -> Parsing[bool]:
        """Emits the text of one JSON value as it comes, white space in it included. False: it broke off."""
        first = yield from self.peek()
        if first and first in "{[":
            return (yield from self._json_nested(emit))
        if first == '"':
            return (yield from self._json_string(emit))
        while (c := (yield from self.peek())) and c not in _SCALAR_END:
            self._emit(1, emit)
        return True

    def _json_nested(self, emit: Emit) -> Parsing[bool]:
        depth = 0
        in_string = escaped = False
        while True:
            text = self.rest
            for i, c in enumerate(text, 1):
                if escaped:
                    escaped = False
                elif in_string:
                    in_string, escaped = c != '"', c == "\\"
                elif c == '"':
                    in_string = True
                elif c in "{[":
                    depth += 1
                elif c in "}]":
                    depth -= 1
                    if depth == 0:
                        self._emit(i, emit)
                        return True
            self._emit(len(text), emit)
            if self.ended:
                return False
            yield

    def _json_string(self, emit: Emit) -> Parsing[bool]:
        self._emit(1, emit)
        escaped = False
        while True:
            text = self.rest
            for i, c in enumerate(text, 1):
                if escaped:
                    escaped = False
                elif c == '"':
                    self._emit(i, emit)
                    return True
                else:
                    escaped = c == "\\"
            self._emit(len(text), emit)
            if self.ended:
                return False
            yield


def first_of(text: str, markers: Sequence[str]) -> tuple[int, str | None]:
    """The earliest of the markers, the longest of those at the same place."""
    best, best_marker = len(text), None
    for marker in markers:
        at = text.find(marker, 0, best + len(marker))
        if at >= 0 and (at < best or (at == best and (best_marker is None or len(marker) > len(best_marker)))):
            best, best_marker = at, marker
    return best, best_marker


def partial_end(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of `text` that one of the markers may grow from."""
    longest = 0
    for marker in markers:
        for n in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:n]):
                longest = n
                break
    return longest


def json_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def escaped(text: str) -> str:
    """As within a JSON string."""
    return json_of(text)[1:-1]


def as_json(text: str) -> str:
    """A value that is no text: JSON as it is, Python's spelling of the same, or after all a text."""
    text = text.strip()
    try:
        json.loads(text)
    except ValueError:
        try:
            return json_of(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return json_of(text)
    return text
