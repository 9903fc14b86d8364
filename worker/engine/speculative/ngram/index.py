"""Finds earlier occurrences of a sequence of tokens by its hash. Pure.

Used by the n-gram drafters. A text is indexed while it grows: the cost per token does not depend on its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_FACTOR = 6364136223846793005  # of a linear congruential generator modulo 2 ** 64; llama.cpp hashes n-grams like this
_MASK = (1 << 64) - 1
_AT_ONCE = 64
"""Number of tokens from which numpy is faster than a loop."""


def hash_of(tokens: Sequence[int]) -> int:
    value = 0
    for token in tokens:
        value = (value * _FACTOR + token) & _MASK
    return value


def hashes(tokens: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return the hash of every run of n consecutive tokens: shape (len(tokens) - n + 1,)."""
    count = len(tokens) - n + 1
    values = np.zeros(max(count, 0), np.uint64)
    factor = np.uint64(_FACTOR)
    for i in range(n if count > 0 else 0):
        values *= factor
        values += tokens[i : i + count]
    return values


class Rolling:
    """The rolling hash of the last n tokens."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.value = hash_of(tokens)
        self._first_factor = pow(_FACTOR, len(tokens), 1 << 64)

    def move(self, out: int, into: int) -> None:
        self.value = (self.value * _FACTOR - out * self._first_factor + into) & _MASK


class NgramIndex:
    """The positions in a growing text of `n` tokens that are followed by at least `n_follow` others."""

    def __init__(self, n: int, n_follow: int) -> None:
        self.n, self.n_follow = n, n_follow
        self._latest: dict[int, int] = {}
        self._before: list[int] = []  # by position: the previous one with the same hash, or -1
        self._rolling: Rolling | None = None  # at the position indexed last

    def update(self, text: list[int]) -> None:
        """Index the tokens that were appended since the previous call; the others must be unchanged."""
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
        """Yield the earlier positions of the text's last n tokens, the latest one first."""
        wanted = text[-self.n :]
        place = self._latest.get(hash_of(wanted), -1) if len(wanted) == self.n else -1
        while place >= 0:
            if text[place : place + self.n] == wanted:
                yield place
            place = self._before[place]

    def _add(self, value: int) -> None:
        self._before.append(self._latest.get(value, -1))
        self._latest[value] = len(self._before) - 1
