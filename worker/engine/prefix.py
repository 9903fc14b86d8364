"""How much two token sequences have in common. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Compared block by block, since slices compare at C speed."""
    return common_run(a, 0, b, 0)


def common_run(a: Sequence[int], begin_a: int, b: Sequence[int], begin_b: int) -> int:
    """The same from the given positions on."""
    n, block, position = min(len(a) - begin_a, len(b) - begin_b), 256, 0
    if n <= 0 or a[begin_a] != b[begin_b]:
        return 0
    while position < n:
        begin, other = begin_a + position, begin_b + position
        if list(a[begin : begin + block]) != list(b[other : other + block]):
            break
        position += block
    while position < n and a[begin_a + position] == b[begin_b + position]:
        position += 1
    return min(position, n)
