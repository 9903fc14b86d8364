"""Parses GBNF as llama.cpp does, in time proportional to the length of the text and without recursion.

Groups become rules, so that no part of a grammar is nested; repetitions are kept and not expanded. The limits of
llama.cpp's parser (2000 repetitions, no undefined rule) apply here too. Raises GrammarError. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec import Struct

MAX_REPETITIONS = 2000
"""llama.cpp refuses more repetitions of a part, and counts a higher maximum as no maximum."""

MAX_NESTING = 2000
"""Deepest nesting of parentheses. llama.cpp's parser is recursive and ends the process at about ten thousand levels."""

MAX_PARTS = 1 << 17
"""Most parts of a grammar: texts, character classes, names, repetitions and alternatives."""

_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\\"\[\]-])"
_TOKEN = re.compile(
    rf"""(?P<blank>(?:[ \t]|\#[^\r\n]*+)++)|(?P<newline>[\r\n]++)|(?P<name>[a-zA-Z0-9-]++)
    |(?P<text>"(?:[^"\\]|{_ESCAPE})*+")|(?P<chars>\[(?:[^\]\\]|{_ESCAPE})*+\])
    |(?P<token>!?<(?:\[[0-9]{{1,9}}\]|[^>]*+)>)
    |(?P<define>::=)
    |(?P<other>[()|.*+?]|\{{[ \t\r\n]*+[0-9]++[ \t\r\n]*+(?:,[ \t\r\n]*+(?:[0-9]++[ \t\r\n]*+)?)?\}})""",
    re.VERBOSE,
)
_LETTER = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_NAMED = {"t": "\t", "r": "\r", "n": "\n"}
_TIMES = {"*": (0, None), "+": (1, None), "?": (0, 1)}

MAX_CHARACTER = 0x10FFFF


class GrammarError(Exception):
    """The text is no grammar, or it exceeds a limit."""


class Chars(Struct, frozen=True):
    """One character within (or, if negated, outside) one of the inclusive ranges of code points."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


class TokenItem(Struct, frozen=True):
    """One token of the vocabulary, or any other one."""

    id: int
    negated: bool


class Repeat(Struct, frozen=True):
    """A part between `low` and `high` times; None: no maximum. The part contains no Repeat."""

    part: tuple[Item, ...]
    low: int
    high: int | None


Item = str | int | Chars | TokenItem | Repeat
"""A text, the index of a rule, or one of the above."""

ANY = Chars((), negated=True)


class Rule(Struct):
    name: str
    alternatives: list[tuple[Item, ...]] | None = None  # None: not defined
    wraps: bool = False
    """True if the rule stands for a repetition that is repeated itself, and not for a group."""


class Gbnf(Struct):
    rules: list[Rule]
    root: int


class _Group(Struct):
    """An open group, or the definition of a rule, while it is parsed."""

    rule: int
    is_nested: bool
    symbols_before: int = 0
    alternatives: list[tuple[Item, ...]] = []
    items: list[Item] = []
    start: int = 0  # where the part begins that a repetition repeats
    n_rules: int = 1  # rules that llama.cpp makes for that part


def parse(text: str, token_of: Callable[[str], int | None]) -> Gbnf:
    """Return the rules of `text`. `token_of` returns the id of a token that is written as `<name>`, or None.

    Raises GrammarError, which names line and column.
    """
    return _Parser(text, token_of).parse()


class _Parser:
    def __init__(self, text: str, token_of: Callable[[str], int | None]) -> None:
        self._text, self._token_of = text, token_of
        self._rules: list[Rule] = []
        self._indices: dict[str, int] = {}
        self._n_symbols = 0
        self._n_parts = 0
        self._at = 0
        self._open: list[_Group] = []

    def parse(self) -> Gbnf:
        name = ""
        state = "name"
        while self._at < len(self._text):
            match = _TOKEN.match(self._text, self._at)
            if match is None or match.lastgroup is None:
                raise self._error("this is not part of a grammar")
            kind, found = match.lastgroup, match.group()
            self._count(kind)
            if kind == "blank" or (kind == "newline" and (state in ("name", "begin") or self._skips_newline)):
                pass
            elif state == "name" and kind == "name":
                name, state = found, "define"
            elif state == "define" and kind == "define":
                self._open, state = [_Group(self._index(name), False)], "begin"
            elif state in ("begin", "body"):
                state = self._body(kind, found)
            else:
                raise self._error("expected " + ("::=" if state == "define" else "the name of a rule"))
            self._at = match.end()
        if state == "define" or len(self._open) > 1:
            raise self._error("unexpected end")
        if self._open:
            self._end_definition()
        return self._checked()

    @property
    def _skips_newline(self) -> bool:
        return bool(self._open) and self._open[-1].is_nested

    def _body(self, kind: str, found: str) -> str:
        """Read a part of a definition. Return the next state."""
        group = self._open[-1]
        if kind == "newline":
            if len(self._open) > 1:
                raise self._error("expected )")
            self._end_definition()
            return "name"
        if found == "|":
            group.alternatives.append(tuple(group.items))
            group.items, group.start = [], 0
            return "begin"
        if found == "(":
            if len(self._open) > MAX_NESTING:
                raise self._error("the groups are nested too deeply")
            before = self._n_symbols
            self._open.append(_Group(self._new_rule(), True, before))
            return "begin"
        if found == ")":
            self._end_group()
        elif kind == "other" and found != ".":
            self._repeat(group, found)
        elif kind == "define":
            raise self._error("expected a newline before the next rule")
        else:
            items = self._items(kind, found)
            group.start, group.n_rules = len(group.items), 1
            group.items += items
        return "body"

    def _items(self, kind: str, found: str) -> list[Item]:
        match kind:
            case "name":
                return [self._index(found)]
            case "text":
                text = "".join(map(self._letter, _LETTER.findall(found[1:-1]))) if "\\" in found else found[1:-1]
                return [text] if text else []
            case "chars":
                return self._chars(found[1:-1])
            case "token":
                return [self._token(found)]
        return [ANY]

    def _end_group(self) -> None:
        if len(self._open) < 2:
            raise self._error("there is no ( for this )")
        done = self._open.pop()
        self._rules[done.rule].alternatives = [*done.alternatives, tuple(done.items)]
        group = self._open[-1]
        group.start, group.n_rules = len(group.items), max(1, self._n_symbols - done.symbols_before)
        group.items.append(done.rule)

    def _end_definition(self) -> None:
        group = self._open.pop()
        self._rules[group.rule].alternatives = [*group.alternatives, tuple(group.items)]

    def _repeat(self, group: _Group, found: str) -> None:
        low, high = _TIMES[found] if found in _TIMES else self._times(found)
        part = tuple(group.items[group.start :])
        if not part:
            raise self._error("there is nothing to repeat")
        # llama.cpp's measure: the rules of the part, times the repetitions
        group.n_rules *= high or low or 1
        if group.n_rules > MAX_REPETITIONS:
            raise self._error(f"more than {MAX_REPETITIONS} rules are made by repetitions of this part")
        self._n_symbols += 1 if high is None else high - low
        if any(isinstance(item, Repeat) for item in part):
            wrapper = self._new_rule(counted=False)
            self._rules[wrapper].alternatives = [part]
            self._rules[wrapper].wraps = True
            part = (wrapper,)
        del group.items[group.start :]
        if high != 0:
            group.items.append(Repeat(part, low, high))

    def _times(self, found: str) -> tuple[int, int | None]:
        first, comma, last = found[1:-1].partition(",")
        low = self._number(first)
        high = None if comma and not last.strip() else self._number(last if comma else first)
        if low > MAX_REPETITIONS:
            raise self._error(f"a part may be repeated {MAX_REPETITIONS} times")
        if high is not None and high < low:
            raise self._error("the maximum of a repetition is less than its minimum")
        return low, None if high is not None and high > MAX_REPETITIONS else high

    def _number(self, digits: str) -> int:
        return min(int(digits.strip().lstrip("0")[:9] or "0"), 10**9)

    def _chars(self, found: str) -> list[Item]:
        negated = found.startswith("^")
        letters = [self._letter(letter) for letter in _LETTER.findall(found[negated:])]
        written = _LETTER.findall(found[negated:])
        ranges: list[tuple[int, int]] = []
        at = 0
        while at < len(letters):
            low = high = ord(letters[at])
            at += 1
            if at + 1 < len(letters) and written[at] == "-":
                high = ord(letters[at + 1])
                at += 2
            ranges.append((low, high))
        if not ranges:
            return []
        self._n_parts += len(ranges)
        return [Chars(_merged(ranges), negated)]

    def _letter(self, letter: str) -> str:
        if len(letter) == 1:
            return letter
        if letter[1] in "xuU":
            number = int(letter[2:], 16)
            if number > MAX_CHARACTER:
                raise self._error(f"there is no character {letter}")
            return chr(number)
        return _NAMED.get(letter[1], letter[1])

    def _token(self, found: str) -> TokenItem:
        named = found.removeprefix("!")
        token = int(named[2:-2]) if re.fullmatch(r"<\[[0-9]+\]>", named) else self._token_of(named)
        if token is None:
            raise self._error(f"{named} is no token of this model")
        return TokenItem(token, found.startswith("!"))

    def _index(self, name: str) -> int:
        index = self._indices.get(name)
        if index is None:
            index = self._indices[name] = self._new_rule()
            self._rules[index].name = name
        return index

    def _new_rule(self, *, counted: bool = True) -> int:
        self._n_symbols += counted
        self._rules.append(Rule(""))
        return len(self._rules) - 1

    def _count(self, kind: str) -> None:
        self._n_parts += kind not in ("blank", "newline")
        if self._n_parts > MAX_PARTS:
            raise GrammarError(f"the grammar is too large: it has more than {MAX_PARTS} parts")

    def _checked(self) -> Gbnf:
        for rule in self._rules:
            if rule.alternatives is None:
                raise GrammarError(f"there is no rule {rule.name}")
        if "root" not in self._indices:
            raise GrammarError("there is no rule root")
        return Gbnf(self._rules, self._indices["root"])

    def _error(self, why: str) -> GrammarError:
        line = self._text.count("\n", 0, self._at)
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1)
        return GrammarError(f"line {line + 1}, column {column + 1}: {why}")


def _merged(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort the ranges, and join those that touch. Ranges whose end is before their beginning contain nothing."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if high < low:
            continue
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)
