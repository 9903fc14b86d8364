"""Refuses grammars with too many ways to go on at one place: the time for a step grows with their square. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .checks import references, walk
from .syntax import Gbnf, GrammarError, Item, Repeat

MAX_WAYS = 6000
"""Most alternatives at one position of a text, counting those of the rules that they begin with."""

_MAX_SEARCHES = 300
"""How often the ways are counted exactly. Elsewhere an upper bound suffices."""

_MAX_PASSES = 50


def check_branching(grammar: Gbnf) -> None:
    """Raise GrammarError if more than MAX_WAYS alternatives are possible at the beginning of a rule."""
    order, _, _ = walk(len(grammar.rules), lambda rule: references(grammar.rules[rule]), [grammar.root])
    optional = _optional(grammar, order)
    begins = [set[int]() for _ in grammar.rules]
    ways = [0] * len(grammar.rules)
    for rule in order:
        alternatives = grammar.rules[rule].alternatives or ()
        ways[rule] = len(alternatives)
        for alternative in alternatives:
            begins[rule].update(_begins(alternative, optional))
    bounds = list(ways)
    n_searches = 0
    for rule in order:
        bounds[rule] += sum(bounds[to] for to in begins[rule])
        if bounds[rule] > MAX_WAYS:
            n_searches += 1
            bounds[rule] = _count(rule, begins, ways)
            if bounds[rule] > MAX_WAYS or n_searches > _MAX_SEARCHES:
                raise GrammarError(
                    f"the grammar is too ambiguous: more than {MAX_WAYS} alternatives are possible at one place"
                )


def _count(rule: int, begins: Sequence[set[int]], ways: Sequence[int]) -> int:
    seen, todo, count = {rule}, [rule], 0
    while todo and count <= MAX_WAYS:
        at = todo.pop()
        count += ways[at]
        new = begins[at] - seen
        seen |= new
        todo += new
    return count


def _begins(items: Sequence[Item], optional: bytearray) -> Iterator[int]:
    """Yield the rules that a sequence can begin with."""
    for item in items:
        if isinstance(item, int):
            yield item
        elif isinstance(item, Repeat):
            yield from _begins(item.part, optional)
        if not _is_optional(item, optional):
            return


def _optional(grammar: Gbnf, order: Sequence[int]) -> bytearray:
    """Return for each rule whether it matches the empty text."""
    optional = bytearray(len(grammar.rules))
    for _ in range(_MAX_PASSES):
        changed = False
        for rule in order:
            if not optional[rule] and any(
                all(_is_optional(item, optional) for item in alternative)
                for alternative in grammar.rules[rule].alternatives or ()
            ):
                optional[rule] = changed = True
        if not changed:
            return optional
    raise GrammarError("the grammar is too ambiguous: too many rules may be empty")


def _is_optional(item: Item, optional: bytearray) -> bool:
    if isinstance(item, int):
        return bool(optional[item])
    if isinstance(item, Repeat):
        return item.low == 0 or all(_is_optional(part, optional) for part in item.part)
    return False
