"""Where a sequence of tokens has occurred before, looked up by its hash. Pure.

Used by the n-gram drafters. A text is indexed as it grows: a token costs the same however long the text has become.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_FACTOR = 6364136223846793005  # of a linear congruential generator modulo 2 ** 64, as llama.cpp hashes n-grams
_MASK = (1 << 64) - 1
_AT_ONCE = 64
"""Tokens from which numpy is faster than one by one."""


def hash_of(tokens: Sequence[int]) -> int:
    value = 0
    for token in tokens:
        value = (value * _FACTOR + token) & _MASK
    return value


def hashes(tokens: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Of each n tokens that stand side by side."""
    count = len(tokens) - n + 1
    values = np.zeros(max(count, 0), np.uint64)
    factor = np.uint64(_FACTOR)
    for i in range(n if count > 0 else 0):
        values *= factor
        values += tokens[i : i + count]
    return values


class Rolling:
    """The hash of the last n tokens, moved on by one token at a time."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.value = hash_of(tokens)
        self._first_factor = pow(_FACTOR, len(tokens), 1 << 64)

    def move(self, out: int, into: int) -> None:
        self.value = (self.value * _FACTOR - out * self._first_factor + into) & _MASK


class NgramIndex:
    """The places in a growing text where `n` tokens stand that at least `n_follow` others follow."""

    def __init__(self, n: int, n_follow: int) -> None:
        self.n, self.n_follow = n, n_follow
        self._latest: dict[int, int] = {}
        self._before: list[int] = []  # by place: the one before it with the same hash, -1: none
        self._rolling: Rolling | None = None  # at the place indexed last

    def update(self, text: list[int]) -> None:
        """`text` is the one of the call before with tokens appended."""
        begin, end = len(self._before), len(text) - self.n - self.n_follow + 1
        if end - begin > _AT_ONCE:
            last = end + self.n - 1
            for value in hashes(np.array(text[begin:last], np.uint64), self.n).tolist():
                self._add(value)
            self._rolling = Rolling(text[end - 1 : last])
            return
        for place in range(begin, end):
            if self._rolling is None:
                self._rolling = Rolling(text[place : place + self.n])
            else:
                self._rolling.move(text[place - 1], text[place + self.n - 1])
            self._add(self._rolling.value)

    def places(self, text: list[int]) -> Iterator[int]:
        """Where the last n tokens of the text have stood before, the latest place first."""
        wanted = text[-self.n :]
        place = self._latest.get(hash_of(wanted), -1) if len(wanted) == self.n else -1
        while place >= 0:
            if text[place : place + self.n] == wanted:
                yield place
            place = self._before[place]

    def _add(self, value: int) -> None:
        self._before.append(self._latest.get(value, -1))
        self._latest[value] = len(self._before) - 1
