"""Joins the common prefixes of alternatives, so that a matcher does not follow thousands of them at once. Pure.

`"ab" | "ac" x` becomes `"a" ("b" | "c" x)`: the same texts in the same language, whatever the other rules are. The
spelling of a control token is not divided, because the token fits only where one text spells it.
"""

from __future__ import annotations

from itertools import groupby

from .spellings import NONE, Spellings
from .syntax import Gbnf, Item, Rule

FEW = 8
"""Up to this number of alternatives are left as they are."""

MAX_JOINED = 64
"""How often a prefix may branch: each branch is one more rule in a chain of rules."""

Alternative = tuple[Item, ...]
Units = tuple[str, ...]
"""A text in parts that are not divided: letters, and the spellings of control tokens."""


def join_prefixes(grammar: Gbnf, spellings: Spellings = NONE) -> Gbnf:
    """Return the grammar with joined prefixes. Rules keep their indices; new rules follow."""
    rules = [Rule(rule.name, rule.alternatives, rule.wraps) for rule in grammar.rules]
    todo = [(index, 0) for index, rule in enumerate(rules) if len(rule.alternatives or ()) > FEW]
    while todo:
        index, level = todo.pop()
        alternatives = rules[index].alternatives or []
        if level == MAX_JOINED or len(alternatives) <= FEW:
            continue
        joined: list[Alternative] = []
        texts = [(spellings.units(a[0]), a) for a in alternatives if a and isinstance(a[0], str)]
        texts.sort(key=_units)
        for _, found in groupby(texts, key=lambda text: text[0][:1]):
            group = list(found)
            if len(group) == 1:
                joined.append(group[0][1])
                continue
            n = _n_common(group[0][0], group[-1][0])
            rules.append(Rule("", [_without(units, alternative, n) for units, alternative in group]))
            joined.append(("".join(group[0][0][:n]), len(rules) - 1))
            todo.append((len(rules) - 1, level + 1))
        rules[index].alternatives = joined + [a for a in alternatives if not (a and isinstance(a[0], str))]
    return Gbnf(rules, grammar.root)


def _units(text: tuple[Units, Alternative]) -> Units:
    return text[0]


def _n_common(first: Units, last: Units) -> int:
    """Return the length of the common prefix of two texts. For sorted texts it is that of all texts between them."""
    n = 0
    while n < len(first) and n < len(last) and first[n] == last[n]:
        n += 1
    return n


def _without(units: Units, alternative: Alternative, n: int) -> Alternative:
    rest = "".join(units[n:])
    return (rest, *alternative[1:]) if rest else alternative[1:]
