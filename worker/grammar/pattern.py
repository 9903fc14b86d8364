"""Read a regular expression as a tree, and write it as a GBNF expression that matches the same texts in a JSON string.

The syntax is ECMAScript's, as in JSON schemas. Features that a grammar cannot express (lookaround, back-references,
word boundaries) raise UnsupportedPattern. Characters that JSON escapes with a backslash are matched in escaped form, so
that the JSON string stays valid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from .rules import CHAR, MAX_REPETITIONS, repeated

Ranges = tuple[tuple[int, int], ...]

_LAST = 0x10FFFF
_MAX_DEPTH = 100
_MAX_LENGTH = 1 << 15  # characters; hand-written patterns have fewer than 1000
_DIGIT: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_BLANK: Ranges = ((9, 13), (32, 32), (0xA0, 0xA0), (0x2028, 0x2029), (0xFEFF, 0xFEFF))
_LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, _LAST))
_ESCAPED = {ord(c): json.dumps(c)[1:-1] for c in '"\\\b\f\n\r\t'}
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _BLANK}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}


class UnsupportedPattern(Exception):
    """The pattern is not a regular expression, or no grammar can express it; the message names the unsupported part."""


class Characters(NamedTuple):
    """One character of some ranges; `text` is its GBNF expression."""

    ranges: Ranges
    text: str
    is_literal: bool = False


class Repeat(NamedTuple):
    """`high` None: no maximum."""

    node: Node
    low: int
    high: int | None


class Sequenced(NamedTuple):
    parts: tuple[Node, ...]


class Choice(NamedTuple):
    ways: tuple[Sequenced, ...]


Node = Characters | Repeat | Sequenced | Choice

ANY_TEXT = Repeat(Characters(((0, _LAST),), CHAR), 0, None)
"""Stands where the pattern has no anchor at an end."""


def read_pattern(pattern: str) -> Choice:
    """Return the tree of `pattern`. Raises UnsupportedPattern."""
    if len(pattern) > _MAX_LENGTH:
        raise UnsupportedPattern(f"more than {_MAX_LENGTH} characters")
    return _PatternReader(pattern).read()


def expression(node: Node) -> str:
    """Return the GBNF expression. It uses the rule CHAR where any text is allowed."""
    match node:
        case Characters():
            return node.text
        case Repeat():
            return repeated(_grouped(node.node), node.low, node.high) or '""'
        case Choice():
            return " | ".join(expression(way) or '""' for way in node.ways)
    parts: list[str] = []
    run = ""  # adjacent characters become one literal
    for part in node.parts:
        if isinstance(part, Characters) and part.is_literal:
            run += part.text[1:-1]
            continue
        if run:
            parts.append(f'"{run}"')
            run = ""
        parts.append(_grouped(part))
    return " ".join([*parts, f'"{run}"'] if run else parts)


def _grouped(node: Node) -> str:
    return f"({expression(node)})" if isinstance(node, Choice) else expression(node)


def lengths(node: Node) -> tuple[int, int | None]:
    """Return the fewest and the most characters of a text that matches; None: no maximum."""
    match node:
        case Characters():
            return 1, 1
        case Repeat():
            low, high = lengths(node.node)
            if high == 0:
                return 0, 0
            return low * node.low, None if high is None or node.high is None else high * node.high
        case Choice():
            found = [lengths(way) for way in node.ways]
            most = [high for _, high in found if high is not None]
            return min(low for low, _ in found), max(most) if len(most) == len(found) else None
    found = [lengths(part) for part in node.parts]
    most = [high for _, high in found if high is not None]
    return sum(low for low, _ in found), sum(most) if len(most) == len(found) else None


class _PatternReader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = self._depth = 0

    def read(self) -> Choice:
        ways = [self._anchored()]
        while self._take("|"):
            ways.append(self._anchored())
        if self._peek():
            raise UnsupportedPattern("unbalanced parentheses")
        return Choice(tuple(ways))

    def _anchored(self) -> Sequenced:
        """Read an alternative of the top level, the only place where anchors are supported."""
        start = self._take("^")
        inner = self._sequence().parts
        end = self._take("$")
        if self._peek() not in ("", "|", ")"):
            raise UnsupportedPattern("an anchor inside the pattern")
        return Sequenced((*(() if start else (ANY_TEXT,)), *inner, *(() if end else (ANY_TEXT,))))

    def _alternatives(self) -> Choice:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UnsupportedPattern("nesting is too deep")
        ways = [self._sequence()]
        while self._take("|"):
            ways.append(self._sequence())
        if not self._take(")"):
            closes = ")" in self._text[self._position :]
            raise UnsupportedPattern("an anchor inside the pattern" if closes else "unbalanced parentheses")
        self._depth -= 1
        return Choice(tuple(ways))

    def _sequence(self) -> Sequenced:
        """Read up to `|`, `)`, `$` or the end."""
        parts: list[Node] = []
        while (c := self._peek()) and c not in "|)$":
            parts.append(self._quantified(self._item(c)))
        return Sequenced(tuple(parts))

    def _item(self, c: str) -> Node:
        self._position += 1
        if c == "^":
            raise UnsupportedPattern("an anchor inside the pattern")
        if c in "*+?":
            raise UnsupportedPattern("nothing to repeat")
        if c == ".":
            return _class(_inverse(_LINE_ENDS))
        if c == "(":
            return self._group()
        if c == "[":
            return self._bracket()
        if c == "\\":
            found = self._escape()
            return _literal(found) if isinstance(found, int) else _class(found)
        return _literal(ord(c))

    def _group(self) -> Choice:
        if self._take("?"):
            name = re.compile(r"<[A-Za-z_$][\w$]*>").match(self._text, self._position)
            if name:
                self._position = name.end()
            elif not self._take(":"):
                raise UnsupportedPattern("a group with lookaround or flags")
        return self._alternatives()

    def _quantified(self, item: Node) -> Node:
        c = self._peek()
        if c and c in "*+?":
            self._position += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        elif c == "{" and (found := re.compile(r"\{(\d+)(,?)(\d*)\}").match(self._text, self._position)):
            self._position = found.end()
            low = int(found[1])
            high = int(found[3]) if found[3] else None if found[2] else low
            if low > MAX_REPETITIONS or (high is not None and high < low):
                raise UnsupportedPattern(f"the repetition {found[0]}")
        else:
            return item
        self._take("?")  # lazy or greedy: both match the same texts
        if self._peek() and self._peek() in "*+?":
            raise UnsupportedPattern("nothing to repeat")
        return Repeat(item, low, high)

    def _bracket(self) -> Characters:
        start = self._position - 1
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._member()
            if self._peek() == "-" and self._peek(1) not in ("", "]"):
                self._position += 1
                high = self._member()
                if not isinstance(low, int) or not isinstance(high, int) or low > high:
                    raise UnsupportedPattern("a range of characters out of order")
                ranges.append((low, high))
            elif isinstance(low, int):
                ranges.append((low, low))
            else:
                ranges += low
        source = self._text[start : self._position]
        if re.fullmatch(r"\[[A-Za-z0-9_ -]+\]", source) and not source.endswith("-]") and source[1] != "-":
            return Characters(_merged(ranges), source)
        return _class(_inverse(ranges) if negated else ranges)

    def _member(self) -> int | Ranges:
        c = self._peek()
        if not c:
            raise UnsupportedPattern("an unterminated character class")
        self._position += 1
        if c != "\\":
            return ord(c)
        if self._take("b"):
            return 8
        return self._escape()

    def _escape(self) -> int | Ranges:
        c = self._peek()
        if not c:
            raise UnsupportedPattern("a backslash at the end")
        self._position += 1
        if c.lower() in _CLASSES:
            known = _CLASSES[c.lower()]
            return known if c.islower() else _inverse(known)
        if c in _CONTROLS:
            return _CONTROLS[c]
        code = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")
        if found := code.match(self._text, self._position - 1):
            self._position = found.end()
            return min(int(found[1] or found[2] or found[3], 16), _LAST)
        if c.isalnum():
            raise UnsupportedPattern(f"the escape \\{c}")
        return ord(c)

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._position + ahead : self._position + ahead + 1]

    def _take(self, wanted: str) -> bool:
        taken = self._peek() == wanted
        self._position += taken
        return taken


def _literal(code: int) -> Characters:
    return Characters(((code, code),), _character(code), is_literal=True)


def _character(code: int) -> str:
    """Return the character as a literal, escaped as in a JSON string."""
    if 0xD800 <= code <= 0xDFFF:
        raise UnsupportedPattern("a lone surrogate")
    written = json.dumps(chr(code), ensure_ascii=False)[1:-1]
    return '"' + written.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _class(ranges: Sequence[tuple[int, int]]) -> Characters:
    text = characters(ranges)
    if not text:
        raise UnsupportedPattern("a character class without characters")
    return Characters(_merged(ranges), text)


def characters(ranges: Sequence[tuple[int, int]]) -> str:
    """Return the GBNF expression of one character of the ranges; empty if a JSON string can have none of them."""
    plain = "".join(_written(low, high) for low, high in _common(_merged(ranges), _PLAIN))
    ways = [f"[{plain}]"] if plain else []
    ways += [_character(code) for code in sorted(_ESCAPED) if any(low <= code <= high for low, high in ranges)]
    return f"({' | '.join(ways)})" if len(ways) > 1 else "".join(ways)


def _written(low: int, high: int) -> str:
    return _class_character(low) if low == high else f"{_class_character(low)}-{_class_character(high)}"


def _class_character(code: int) -> str:
    c = chr(code)
    return c if c.isascii() and c.isalnum() else f"\\U{code:08X}"


def _merged(ranges: Sequence[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _inverse(ranges: Sequence[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    begin = 0
    for low, high in _merged(ranges):
        if low > begin:
            found.append((begin, low - 1))
        begin = high + 1
    return (*found, (begin, _LAST)) if begin <= _LAST else tuple(found)


def _common(a: Ranges, b: Ranges) -> Ranges:
    return tuple((max(x, u), min(y, v)) for x, y in a for u, v in b if max(x, u) <= min(y, v))
