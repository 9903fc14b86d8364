"""Finds the spellings of control tokens in the texts of a grammar. Pure.

A grammar spells such a token as text, but the model writes it as one token: no step may tear it apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping


class Spellings:
    """The control tokens of a vocabulary. Of several that begin at one place, the longest is found."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """`ids`: the tokens by spelling."""
        self._ids = ids
        longest_first = sorted(filter(None, ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def parts(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield the parts of a text in order: spellings with their token, and the text between them with None."""
        begin = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            if before := text[begin : found.start()]:
                yield before, None
            yield found.group(), self._ids[found.group()]
            begin = found.end()
        if rest := text[begin:]:
            yield rest, None

    def units(self, text: str) -> tuple[str, ...]:
        """Return the text in the smallest parts that may be separated: letters and spellings."""
        units: list[str] = []
        for part, token in self.parts(text):
            if token is None:
                units += part
            else:
                units.append(part)
        return tuple(units)


NONE = Spellings({})
