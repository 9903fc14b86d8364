"""Glob patterns for paths with `/`. Pure; used by the tools that list and search, in the tool process.

Patterns come from models, so the time of a match is always at most proportional to pattern length times path length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

CharacterTest = Callable[[str], bool]
"""Returns True if a transition accepts this character."""
_Ways = list[tuple[CharacterTest | None, int]]
"""Transitions from one state of the pattern to others; None: consumes no character."""


@dataclass(frozen=True)
class Glob:
    """A pattern, matched as a nondeterministic automaton.

    `*` and `?` do not match `/`, `**` does, `**/` is any number of folders, `[a-z]` and `[!a-z]` are one character.
    A pattern without `/` is matched against the file name. Other patterns are matched against the end of the path, or
    against the whole path if they start with `/` or `**/`.
    """

    pattern: str

    def __call__(self, path: str) -> bool:
        if "/" not in self.pattern:
            path = path.rpartition("/")[2]
        places = self._open({0})
        for character in path:
            places = self._open(
                end for place in places for takes, end in self._ways[place] if takes and takes(character)
            )
        return len(self._ways) - 1 in places

    @cached_property
    def _ways(self) -> list[_Ways]:
        pattern = self.pattern
        if pattern.startswith("/"):
            pattern = pattern[1:]
        elif "/" in pattern and not pattern.startswith("**/"):
            pattern = "**/" + pattern
        return _compile(pattern)

    def _open(self, places: Iterable[int]) -> set[int]:
        """Return the states with all states that can be reached without a character, so there is no backtracking."""
        opened: set[int] = set()
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            if place not in opened:
                opened.add(place)
                waiting += [end for takes, end in self._ways[place] if takes is None]
        return opened


def _compile(pattern: str) -> list[_Ways]:
    ways: list[_Ways] = []
    at = 0
    while at < len(pattern):
        here = len(ways)
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            inside, after = here + 1, here + 2
            ways += [[(None, after), (_is_any, inside)], [(_is_any, inside), ("/".__eq__, after)]]
            at += 3
        elif pattern[at] == "*":
            is_deep = pattern.startswith("**", at)
            ways.append([(None, here + 1), (_is_any if is_deep else _is_in_name, here)])
            at += 2 if is_deep else 1
        elif pattern[at] == "[" and (end := _class_end(pattern, at)) is not None:
            ways.append([(_class(pattern[at + 1 : end]), here + 1)])
            at = end + 1
        else:
            ways.append([(_is_in_name if pattern[at] == "?" else pattern[at].__eq__, here + 1)])
            at += 1
    return [*ways, []]


def _is_any(character: str) -> bool:
    return True


def _is_in_name(character: str) -> bool:
    return character != "/"


def _class_end(pattern: str, start: int) -> int | None:
    """Return the position of the `]` that ends the class; its first member may be a bracket. None: it is no class."""
    first = start + 2 if pattern.startswith("!", start + 1) else start + 1
    end = pattern.find("]", first + 1)
    return end if end != -1 else None


def _class(text: str) -> CharacterTest:
    negated = text.startswith("!")
    members = text[1:] if negated else text
    ranges: list[tuple[str, str]] = []
    at = 0
    while at < len(members):
        is_range = members[at + 1 : at + 2] == "-" and at + 2 < len(members)
        ranges.append((members[at], members[at + 2] if is_range else members[at]))
        at += 3 if is_range else 1
    return lambda character: any(low <= character <= high for low, high in ranges) is not negated and character != "/"
