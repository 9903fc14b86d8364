"""Joins the common beginnings of alternatives, so that a matcher does not follow thousands of them at once. Pure.

`"ab" | "ac" x` becomes `"a" ("b" | "c" x)`: the same texts in the same language, whatever the other rules are.
"""

from __future__ import annotations

from itertools import groupby

from .syntax import Gbnf, Item, Rule

FEW = 8
"""Up to this number of alternatives are left as they are."""

MAX_JOINED = 64
"""How often a beginning may branch: each branch is one more rule in a chain of rules."""

Alternative = tuple[Item, ...]


def join_prefixes(grammar: Gbnf) -> Gbnf:
    """Return the grammar with joined beginnings. Rules keep their indices; new rules follow."""
    rules = [Rule(rule.name, rule.alternatives, rule.wraps) for rule in grammar.rules]
    todo = [(index, 0) for index, rule in enumerate(rules) if len(rule.alternatives or ()) > FEW]
    while todo:
        index, level = todo.pop()
        alternatives = rules[index].alternatives or []
        if level == MAX_JOINED or len(alternatives) <= FEW:
            continue
        joined: list[Alternative] = []
        texts = sorted((a for a in alternatives if a and isinstance(a[0], str)), key=lambda a: str(a[0]))
        for _, found in groupby(texts, key=lambda a: str(a[0])[0]):
            group = list(found)
            if len(group) == 1:
                joined.append(group[0])
                continue
            common = _common(str(group[0][0]), str(group[-1][0]))
            rules.append(Rule("", [_without(alternative, len(common)) for alternative in group]))
            joined.append((common, len(rules) - 1))
            todo.append((len(rules) - 1, level + 1))
        rules[index].alternatives = joined + [a for a in alternatives if not (a and isinstance(a[0], str))]
    return Gbnf(rules, grammar.root)


def _common(first: str, last: str) -> str:
    """Return the common beginning of two texts. For sorted texts it is that of all texts between them."""
    n = 0
    while n < len(first) and n < len(last) and first[n] == last[n]:
        n += 1
    return first[:n]


def _without(alternative: Alternative, n: int) -> Alternative:
    rest = str(alternative[0])[n:]
    return (rest, *alternative[1:]) if rest else alternative[1:]
