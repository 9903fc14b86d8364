"""Computes the number of tokens that two sequences have in common. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_BLOCK = 1024


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return common_run(a, 0, b, 0)


def common_run(a: Sequence[int], begin_a: int, b: Sequence[int], begin_b: int) -> int:
    """Return the number of equal tokens from the given indexes on.

    Compares slices of growing size: most pairs differ early, and slices of the others are compared at C speed.
    """
    if type(a) is not type(b):
        a, b = list(a), list(b)
    n, block, position = min(len(a) - begin_a, len(b) - begin_b), 8, 0
    while position < n:
        i, j = begin_a + position, begin_b + position
        if a[i : i + block] != b[j : j + block]:
            break
        position += block
        block = min(2 * block, _MAX_BLOCK)
    while position < n and a[begin_a + position] == b[begin_b + position]:
        position += 1
    return max(0, min(position, n))
