"""Read text that arrives in pieces as if it were complete.

A parser is a generator that yields when it needs more text: `yield from reader.until(…)`. Its result depends only on
the text, never on how the text is split, because nothing is decided before it is certain. If the end of the text makes
something uncertain, `starved` is True; only `truncated` says whether the model or something else ended the text.
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
        """True if no more text will be fed."""
        self.truncated = False
        """True if a limit or a stop word ended the text, so that the answer is incomplete."""
        self.follows = ""
        """The stop word that ended the text, "" if none did."""
        self.starved = False
        """True if a parser needed more text after the end to decide what the last part is."""
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
        """The text that was fed and is not yet read."""
        return self._text[self._position :]

    @property
    def is_undecided(self) -> bool:
        """True if the text was cut off where it may still become something else than it is."""
        return self.truncated and self.starved

    # -- rewinding -----------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """Save the position for `rewind`."""
        self._kept = self._position

    def unmark(self) -> None:
        self._kept = None

    def rewind(self) -> None:
        """Return to the position of `mark`; do nothing after `unmark`."""
        if self._kept is not None:
            self._position = self._kept
        self._kept = None

    # -- reading -------------------------------------------------------------------------------------------------------

    def peek(self) -> Parsing[str]:
        """Return the next character without reading it; "" at the end."""
        while self._position >= len(self._text):
            if self.ended:
                self.starved = True
                return ""
            yield
        return self._text[self._position]

    def skip(self, n: int) -> None:
        self._position += n

    def skip_rest(self) -> None:
        self._position = len(self._text)

    def skip_space(self) -> Parsing[None]:
        while (yield from self.peek()) in SPACE:
            if self._position >= len(self._text):  # the end
                return
            self._position += 1

    def skip_blanks(self, wanted: str) -> Parsing[None]:
        """Skip the characters of `wanted` in this order; missing ones are ignored."""
        for blank in wanted:
            if (yield from self.peek()) == blank:
                self._position += 1

    def literal(self, text: str) -> Parsing[bool]:
        """Read `text` if it is next. Return False and read nothing if not."""
        while not self.rest.startswith(text):
            if not text.startswith(self.rest) or self._starves():
                return False
            yield
        self._position += len(text)
        return True

    def word(self, text: str) -> Parsing[bool]:
        """Like `literal`, but skip white space before `text`; if it does not follow, nothing is read."""
        stripped = text.strip()
        if not stripped:
            return True
        while True:
            rest = self.rest
            found = rest.lstrip(SPACE)
            if found.startswith(stripped):
                self._position += len(rest) - len(found) + len(stripped)
                return True
            if not stripped.startswith(found) or self._starves():
                return False
            yield

    def _starves(self) -> bool:
        """Return True if the text has ended although a parser needs more of it."""
        self.starved = self.starved or self.ended
        return self.ended

    def is_next(self, text: str) -> Parsing[bool]:
        """Return True if `word` would read `text`."""
        self.mark()
        found = yield from self.word(text)
        self.rewind()
        return found

    def until(self, markers: Sequence[str], emit: Emit) -> Parsing[str | None]:
        """Emit the text before the first marker and return the marker, unread. None: no marker, all text is read.

        The beginning of a marker at the end of a truncated text is not emitted.
        """
        while True:
            text = self.rest
            at, marker = first_of(text, markers)
            certain = len(text)
            if not self.ended or self.truncated:
                certain -= partial_end(text, markers, self.follows)
            is_whole = at < certain or (self.ended and not self.truncated)  # else it may begin a longer marker
            if marker is not None and is_whole:
                self._emit(at, emit)
                return marker
            self._emit(certain, emit)
            if self._starves():
                self.skip_rest()
                return None
            yield

    def text_until(self, markers: Sequence[str]) -> Parsing[tuple[str, str | None]]:
        """Return the text before the first marker, and the marker, as `until` does."""
        parts: list[str] = []
        marker = yield from self.until(markers, parts.append)
        return "".join(parts), marker

    def _emit(self, n: int, emit: Emit) -> None:
        if n > 0:
            emit(self._text[self._position : self._position + n])
            self._position += n

    # -- JSON ----------------------------------------------------------------------------------------------------------

    def json(self, emit: Emit) -> Parsing[bool]:
        """Emit the text of one JSON value while it arrives, with its white space. Return False if it is truncated."""
        first = yield from self.peek()
        if first and first in "{[":
            return (yield from self._json_nested(emit))
        if first == '"':
            return (yield from self._json_string(emit))
        while (c := (yield from self.peek())) and c not in _SCALAR_END:
            self._emit(1, emit)
        return bool(c)

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
            if self._starves():
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
            if self._starves():
                return False
            yield


def first_of(text: str, markers: Sequence[str]) -> tuple[int, str | None]:
    """Return position and text of the first marker; at the same position, of the longest."""
    best, best_marker = len(text), None
    for marker in markers:
        at = text.find(marker, 0, best + len(marker))
        if at >= 0 and (at < best or (at == best and (best_marker is None or len(marker) > len(best_marker)))):
            best, best_marker = at, marker
    return best, best_marker


def partial_end(text: str, markers: Sequence[str], follows: str = "") -> int:
    """Return the length of the longest suffix of `text` that is the beginning of a marker.

    `follows`: the text after `text` as far as it is known; the marker must go on with it.
    """
    longest = 0
    for marker in markers:
        for n in range(min(len(marker) - 1, len(text)), longest, -1):
            rest = marker[n : n + len(follows)]
            if text.endswith(marker[:n]) and follows.startswith(rest):
                longest = n
                break
    return longest


def json_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def escaped(text: str) -> str:
    """Return `text` escaped for a JSON string, without the quotes."""
    return json_of(text)[1:-1]


def as_json(text: str) -> str:
    """Return a value as JSON: unchanged if it is JSON, converted if it is a Python literal, else as a string."""
    text = text.strip()
    try:
        json.loads(text)
    except ValueError:
        try:
            return json_of(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return json_of(text)
    return text
