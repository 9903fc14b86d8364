"""Refuses grammars that a matcher cannot handle: left recursion, and sizes that take too long or exhaust the stack.

Both matchers follow the references of rules recursively when they begin, and llama.cpp's search for left recursion
takes one way after the other, without remembering where it has been. So depth and number of the ways are counted here
first, without recursion and in time proportional to the size of the grammar. Raises GrammarError. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from .syntax import Gbnf, GrammarError, Item, Repeat, Rule

MAX_DEPTH = 2000
"""Longest chain of rules that refer to each other. Recursive code of a matcher follows it."""

MAX_LEFT_DEPTH = 10_000
"""Deepest recursion of llama.cpp's search for left recursion: about 200 bytes of the stack for each level."""

MAX_LEFT_STEPS = 1_000_000
"""Most steps of llama.cpp's search for left recursion."""

MAX_EXPANDED = 1 << 20
"""Most parts of a grammar whose repetitions are written out, as llama.cpp does: 16 bytes each."""

Edge = tuple[int, int]
"""An index of a rule, and how often it is reached."""


def check_size(grammar: Gbnf) -> None:
    """Refuse a grammar that is too large or too deep for any matcher."""
    if _expanded(grammar) > MAX_EXPANDED:
        raise GrammarError("the grammar is too large: its repetitions make too many parts")
    depth = walk(len(grammar.rules), lambda rule: references(grammar.rules[rule]), [grammar.root])[1]
    if depth > MAX_DEPTH:
        raise GrammarError(f"rules refer to each other in a chain of more than {MAX_DEPTH} rules")


def check_left_recursion(grammar: Gbnf) -> None:
    """Refuse a grammar in which a rule can begin with itself, as llama.cpp does."""
    ways = _LeftEdges(grammar)
    order, _, cyclic = walk(len(grammar.rules), ways.of, range(len(grammar.rules)))
    if cyclic or ways.repeats_nothing:
        raise GrammarError("a rule can begin with itself (left recursion)")
    steps, depths = [0] * len(grammar.rules), [0] * len(grammar.rules)

    def count(edges: Iterable[Edge]) -> tuple[int, int]:
        n_steps, depth = 1, 1
        for to, times in edges:
            n_steps += steps[to] * times
            depth = max(depth, depths[to] + times)
        if n_steps > MAX_LEFT_STEPS:
            raise GrammarError("the grammar is too ambiguous: there are too many ways to begin a rule")
        if depth > MAX_LEFT_DEPTH:
            raise GrammarError("too many rules begin with each other in a chain")
        return n_steps, depth

    for rule in order:
        steps[rule], depths[rule] = count(ways.counted(rule))
    for repeat in ways.repeats:  # llama.cpp makes rules of it, and searches them too
        count(ways.first(repeat))


def references(rule: Rule) -> Iterator[int]:
    """Yield the rules that a rule refers to, in the order of the text."""
    for alternative in rule.alternatives or ():
        for item in alternative:
            if isinstance(item, int):
                yield item
            elif isinstance(item, Repeat):
                yield from (part for part in item.part if isinstance(part, int))


def walk(n: int, edges: Callable[[int], Iterator[int]], roots: Sequence[int]) -> tuple[list[int], int, bool]:
    """Visit all rules depth first. Return them in the order in which they are left, the depth, and if there is a cycle.

    A rule is visited once; its depth is that of the way on which a depth-first search reaches it.
    """
    order: list[int] = []
    seen, is_open = bytearray(n), bytearray(n)
    depth, cyclic = 0, False
    for root in roots:
        if seen[root]:
            continue
        seen[root] = is_open[root] = True
        stack = [(root, edges(root))]
        while stack:
            rule, rest = stack[-1]
            to = next(rest, None)
            if to is None:
                is_open[rule] = False
                order.append(rule)
                stack.pop()
            elif not seen[to]:
                seen[to] = is_open[to] = True
                stack.append((to, edges(to)))
                depth = max(depth, len(stack))
            else:
                cyclic = cyclic or bool(is_open[to])
    return order, depth, cyclic


def _expanded(grammar: Gbnf) -> int:
    total = 0
    for rule in grammar.rules:
        for alternative in rule.alternatives or ():
            total += 1 + sum(map(_width, alternative))
    return total


def _width(item: Item) -> int:
    if isinstance(item, str):
        return len(item)
    if isinstance(item, Repeat):
        optional = 1 if item.high is None else item.high - item.low
        return sum(map(_width, item.part)) * (max(item.low, 0) + optional) + 3 * optional
    return 1


class _LeftEdges:
    """Which rules a rule can begin with, by llama.cpp's measure: only an empty alternative makes a rule optional."""

    def __init__(self, grammar: Gbnf) -> None:
        self._rules = grammar.rules
        self.repeats = [
            item
            for rule in grammar.rules
            for alternative in rule.alternatives or ()
            for item in alternative
            if isinstance(item, Repeat)
        ]
        self._optional = [
            not rule.wraps and any(not alternative for alternative in rule.alternatives or ()) for rule in grammar.rules
        ]
        for index, rule in enumerate(grammar.rules):
            if rule.wraps:  # it repeats a part that was read, and so has an index, before
                self._optional[index] = self._passes(rule.alternatives[0] if rule.alternatives else ())
        self._edges = [list(self._of(rule)) for rule in grammar.rules]
        self.repeats_nothing = any(repeat.high is None and self._passes(repeat.part) for repeat in self.repeats)
        """True if a part that llama.cpp takes for optional is repeated without a maximum: it begins with itself."""

    def of(self, rule: int) -> Iterator[int]:
        return (to for to, _ in self._edges[rule])

    def counted(self, rule: int) -> list[Edge]:
        return self._edges[rule]

    def _of(self, rule: Rule) -> Iterator[Edge]:
        for alternative in rule.alternatives or ():
            for item in alternative:
                yield from self.first(item)
                if not self._may_be_left_out(item):
                    break

    def first(self, item: Item) -> Iterator[Edge]:
        if isinstance(item, int):
            yield item, 1
        elif isinstance(item, Repeat):
            passes = self._passes(item.part)
            # once for each repetition that can be reached through empty ones
            times = max(item.low, item.high or 0, 1) if passes else 2
            for part in item.part:
                if isinstance(part, int):
                    yield part, times
                if not self._may_be_left_out(part):
                    break

    def _passes(self, items: tuple[Item, ...]) -> bool:
        return all(map(self._may_be_left_out, items))

    def _may_be_left_out(self, item: Item) -> bool:
        if isinstance(item, int):
            return self._optional[item]
        if isinstance(item, Repeat):
            return item.low == 0 or self._passes(item.part)
        return False
