"""Match texts against a pattern, and write a pattern together with bounds of its length as rules of a grammar.

A grammar cannot count the characters that an expression matches. So the pattern becomes an automaton, and each pair of
a state and a number of characters becomes a rule. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from .pattern import Characters, Choice, Node, Ranges, Repeat, UnsupportedPattern, characters, read_pattern
from .rules import GrammarRules
from .work import STEP, Budget, TooMuchWork

_MAX_STATES = 20_000
_MAX_PLACES = 10_000
_LONG_CLASS = 20
_MAX_STEPS = 500_000
"""Limit of the steps from state to state for the rules of one pattern; more would take over half a second."""

States = frozenset[int]


class Automaton:
    """The nondeterministic automaton of a pattern. All methods raise TooMuchWork if `budget` is spent."""

    def __init__(self, pattern: Node, budget: Budget) -> None:
        """Raises UnsupportedPattern if there are too many states."""
        self._empty: list[list[int]] = []  # of each state: the states that are reached without a character
        self._moves: list[list[tuple[Ranges, int]]] = []  # of each state: by a character of the ranges
        self._edges: dict[States, Mapping[States, Ranges]] = {}
        self._budget = budget
        first = self._state()
        self._end = self._add(pattern, first)
        self.start = self._closed([first])

    def is_end(self, states: States) -> bool:
        return self._end in states

    def matches(self, text: str) -> bool:
        states = self.start
        for letter in map(ord, text):
            states = self._closed(
                target
                for state in states
                for ranges, target in self._moves[state]
                if any(low <= letter <= high for low, high in ranges)
            )
        return self.is_end(states)

    def edges(self, states: States) -> Mapping[States, Ranges]:
        """Return the next states, and the characters that lead to each, if JSON can have them; these do not overlap."""
        if states not in self._edges:
            moves = [(low, high, to) for state in states for ranges, to in self._moves[state] for low, high in ranges]
            limits = sorted({low for low, _, _ in moves} | {high + 1 for _, high, _ in moves})
            found: dict[States, list[tuple[int, int]]] = {}
            for begin, end in pairwise(limits):
                targets = {target for low, high, target in moves if low <= begin <= high}
                if targets:
                    found.setdefault(self._closed(targets), []).append((begin, end - 1))
            self._edges[states] = {target: tuple(ranges) for target, ranges in found.items() if characters(ranges)}
        return self._edges[states]

    def _state(self) -> int:
        if len(self._empty) >= _MAX_STATES:
            raise UnsupportedPattern("it is too large")
        self._empty.append([])
        self._moves.append([])
        return len(self._empty) - 1

    def _add(self, node: Node, begin: int) -> int:
        """Add the states of `node`, which begins in the state `begin`; return its end."""
        match node:
            case Characters():
                end = self._state()
                self._moves[begin].append((node.ranges, end))
                return end
            case Choice():
                end = self._state()
                for way in node.ways:
                    self._empty[self._add(way, begin)].append(end)
                return end
            case Repeat():
                return self._repeat(node, begin)
        for part in node.parts:
            begin = self._add(part, begin)
        return begin

    def _repeat(self, node: Repeat, begin: int) -> int:
        for _ in range(node.low):
            begin = self._add(node.node, begin)
        inner = self._state()  # a separate state, since the loop comes back to it
        self._empty[begin].append(inner)
        if node.high is None:
            self._empty[self._add(node.node, inner)].append(inner)
            return inner
        end = self._state()
        for _ in range(node.high - node.low):
            self._empty[inner].append(end)
            inner = self._add(node.node, inner)
        self._empty[inner].append(end)
        return end

    def _closed(self, states: Iterable[int]) -> States:
        found = set(states)
        waiting = list(found)
        n = len(found)
        while waiting:
            for state in self._empty[waiting.pop()]:
                if state not in found:
                    found.add(state)
                    waiting.append(state)
            n += 1
        self._budget.spend(STEP * n)
        return frozenset(found)


Place = tuple[States, int]
"""A state of the automaton after a number of characters."""


class Way(NamedTuple):
    """What may follow at a place: the end of the text, or the next places with the characters that lead to them."""

    ends: bool
    following: dict[Place, Ranges]


def bounded_pattern(rules: GrammarRules, pattern: str, low: int, high: int | None) -> str:
    """Add rules for the texts of `low` to `high` characters that match, and return the first rule's name.

    Return "" if there is no such text. Raises UnsupportedPattern, also if there would be too many rules.
    """
    rules.budget.expect(STEP * _MAX_STEPS)  # cannot be interrupted
    found = _bounded_rules(pattern, low, high)
    rules.budget.spend(found.work)
    if found.error:
        raise UnsupportedPattern(found.error)
    for name, rule in found.rules:
        rules.add(name, rule)
    return found.first


class _BoundedRules(NamedTuple):
    work: int
    first: str = ""  # a name; "": no text matches
    rules: Sequence[tuple[str, str]] = ()  # names and texts
    error: str = ""


@lru_cache(maxsize=16)
def _bounded_rules(pattern: str, low: int, high: int | None) -> _BoundedRules:
    """Return the rules, or why there are none, with the work that it takes. Only equal rules have equal names."""
    budget = Budget(STEP * _MAX_STEPS)
    try:
        ways = _useful(_ways(Automaton(read_pattern(pattern), budget), low, high))
    except UnsupportedPattern as why:
        return _BoundedRules(budget.spent, error=str(why))
    except TooMuchWork:
        return _BoundedRules(budget.spent, error="it is too large")
    if not ways:
        return _BoundedRules(budget.spent)
    return _BoundedRules(budget.spent, *_written(ways, pattern, low, high))


def _written(ways: dict[Place, Way], pattern: str, low: int, high: int | None) -> tuple[str, Sequence[tuple[str, str]]]:
    """Return the first rule's name, and all names and rules."""
    rules: dict[str, str] = {}
    first = next(iter(ways))
    merged = {place: place for place in ways} if high is None else _merged(ways)
    identity = hashlib.sha256(f"{low} {high} {pattern}".encode("utf-8", "replace")).hexdigest()[:12]
    kept = dict.fromkeys(merged.values())
    names = {place: f"text-{identity}-{number}" for number, place in enumerate(kept)}
    for place in kept:
        following: dict[Place, Ranges] = {}
        for target, ranges in ways[place].following.items():
            following[merged[target]] = (*following.get(merged[target], ()), *ranges)
        choice = [f"{_one_of(rules, ranges)} {names[target]}" for target, ranges in following.items()]
        rules[names[place]] = " | ".join([*choice, *(['""'] if ways[place].ends else [])])
    return names[merged[first]], tuple(rules.items())


def _one_of(rules: dict[str, str], ranges: Ranges) -> str:
    """Return an expression for one character: the name of a rule if it is long."""
    text = characters(ranges)
    if len(text) <= _LONG_CLASS:
        return text
    name = f"characters-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    rules[name] = text
    return name


def _ways(automaton: Automaton, low: int, high: int | None) -> dict[Place, Way]:
    """Return the ways of all places, beginning with the first place."""
    ways: dict[Place, Way] = {}
    waiting = [(automaton.start, 0)]
    while waiting:
        place = waiting.pop()
        if place in ways:
            continue
        if len(ways) >= _MAX_PLACES:
            raise UnsupportedPattern("it is too large together with minLength or maxLength")
        states, n = place
        following: dict[Place, Ranges] = {}
        if n != high:
            next_n = min(n + 1, low) if high is None else n + 1  # without a maximum only the minimum counts
            following = {(target, next_n): ranges for target, ranges in automaton.edges(states).items()}
        ways[place] = Way(automaton.is_end(states) and n >= low, following)
        waiting += following
    return ways


def _useful(ways: dict[Place, Way]) -> dict[Place, Way]:
    """Return the places from which an end can be reached, or nothing if the first one is not among them."""
    before: dict[Place, list[Place]] = {}
    for place, way in ways.items():
        for target in way.following:
            before.setdefault(target, []).append(place)
    waiting = [place for place, way in ways.items() if way.ends]
    useful = set(waiting)
    while waiting:
        for place in before.get(waiting.pop(), ()):
            if place not in useful:
                useful.add(place)
                waiting.append(place)
    if next(iter(ways)) not in useful:
        return {}
    return {
        place: Way(way.ends, {target: ranges for target, ranges in way.following.items() if target in useful})
        for place, way in ways.items()
        if place in useful
    }


def _merged(ways: dict[Place, Way]) -> dict[Place, Place]:
    """Return for each place one that has the same ways: each place only leads to places with more characters."""
    merged: dict[Place, Place] = {}
    known: dict[object, Place] = {}
    for place in sorted(ways, key=lambda place: -place[1]):
        following: dict[Place, list[tuple[int, int]]] = {}
        for target, ranges in ways[place].following.items():
            following.setdefault(merged[target], []).extend(ranges)
        same = ways[place].ends, frozenset((target, tuple(sorted(ranges))) for target, ranges in following.items())
        merged[place] = known.setdefault(same, place)
    return merged
