"""Collect the rules of one GBNF grammar, and define the primitive rules of JSON.

Rule names, digit counts and the white space between values are llama-server's: the same schema, model and seed must
give the same tokens.
"""

from __future__ import annotations

import json
import re

from .work import Budget

SPACE = r'| " " | "\n"{1,2} [ \t]{0,20}'
MAX_REPETITIONS = 2000
"""Limit of llama.cpp's grammars: a higher maximum counts as no maximum, a higher minimum is refused."""

CHAR = "char"
_HEX = "[0-9a-fA-F]"
_PRIMITIVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "boolean": ('("true" | "false")', ()),
    "decimal-part": ("[0-9]{1,16}", ()),
    "integral-part": ("[0] | [1-9] [0-9]{0,15}", ()),
    "number": (
        '("-"? integral-part) ("." decimal-part)? ([eE] [-+]? integral-part)?',
        ("integral-part", "decimal-part"),
    ),
    "integer": ('("-"? integral-part)', ("integral-part",)),
    "value": (
        "object | array | string | number | boolean | null",
        ("object", "array", "string", "number", "boolean", "null"),
    ),
    "object": (
        '"{" space ( string ":" space value ("," space string ":" space value)* )? space "}"',
        ("string", "value"),
    ),
    "array": ('"[" space ( value ("," space value)* )? space "]"', ("value",)),
    "uuid": (r'"\"" ' + ' "-" '.join(f"{_HEX}{{{n}}}" for n in (8, 4, 4, 4, 12)) + r' "\""', ()),
    CHAR: (r'[^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" [0-9a-fA-F]{4})', ()),
    "string": (r'"\"" char* "\""', (CHAR,)),
    "null": ('"null"', ()),
    "date": ('[0-9]{4} "-" ( "0" [1-9] | "1" [0-2] ) "-" ( "0" [1-9] | [1-2] [0-9] | "3" [0-1] )', ()),
    "time": (
        '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ( "." [0-9]{3} )? '
        '( "Z" | ( "+" | "-" ) ( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9] )',
        (),
    ),
    "date-time": ('date "T" time', ("date", "time")),
    "date-string": (r'"\"" date "\""', ("date",)),
    "time-string": (r'"\"" time "\""', ("time",)),
    "date-time-string": (r'"\"" date-time "\""', ("date-time",)),
}
_RESERVED = frozenset({"root", *_PRIMITIVES})
_ESCAPES = {"\r": "\\r", "\n": "\\n", '"': '\\"', "\\": "\\\\"}


class GrammarRules:
    def __init__(self, budget: Budget | None = None) -> None:
        self._rules = {"space": SPACE}
        self._names: dict[tuple[str, str], str] = {}  # of rules that got a number
        self._numbers: dict[str, int] = {}  # the next one for each name
        self.budget = budget or Budget()

    def __contains__(self, name: str) -> bool:
        return name in self._rules

    def add(self, name: str, rule: str) -> str:
        """Add a rule and return its name, which gets a number if a different rule already has that name."""
        name = re.sub("[^a-zA-Z0-9-]+", "-", name)
        self.budget.take(len(rule))
        if self._rules.setdefault(name, rule) == rule:
            return name
        if (name, rule) not in self._names:
            number = self._numbers.get(name, 0)
            while self._rules.setdefault(f"{name}{number}", rule) != rule:
                number += 1
            self._numbers[name] = number + 1
            self._names[name, rule] = f"{name}{number}"
        return self._names[name, rule]

    def reserve(self, name: str) -> str:
        """Return an unused name like `name`, for a rule that other rules use before `define` adds it."""
        name = re.sub("[^a-zA-Z0-9-]+", "-", name)
        number, unique = 0, name
        while unique in self._rules:
            unique = f"{name}{number}"
            number += 1
        self._rules[unique] = ""
        return unique

    def define(self, reserved: str, rule: str) -> None:
        self.budget.take(len(rule))
        self._rules[reserved] = rule

    def primitive(self, kind: str, name: str = "") -> str:
        """Add a primitive rule and the rules that it uses; return its name. With `name` "root" it is the root."""
        rule, needs = _PRIMITIVES[kind]
        added = self.add("root" if name == "root" else kind, rule)
        for need in needs:
            if need not in self:
                self.primitive(need)
        return added

    def text(self) -> str:
        """Return all rules as GBNF text, sorted by name."""
        return "".join(f"{name} ::= {rule}\n" for name, rule in sorted(self._rules.items()))


def rule_name(name: str) -> str:
    """Return `name`, changed if a primitive rule has that name; "root" if it is empty."""
    return f"{name}-" if name in _RESERVED else name or "root"


def below(name: str, part: str) -> str:
    return f"{name}-{part}" if name else part


def literal(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c, c) for c in text) + '"'


def json_literal(value: object) -> str:
    return literal(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def repeated(item: str, low: int, high: int | None, separator: str = "") -> str:
    """Return an expression for `item` between `low` and `high` times. `high` None: no maximum."""
    if high == 0:
        return ""
    if (low, high) == (0, 1):
        return f"{item}?"
    if not separator:
        if high is None and low <= 1:
            return item + "*+"[low]
        return f"{item}{{{low},{'' if high is None else high}}}"
    rest = repeated(f"({separator} {item})", max(0, low - 1), None if high is None else high - 1)
    several = f"{item} {rest}"
    return several if low else f"({several})?"
