"""Which adapters act on which tokens of a sequence. Pure: scales and positions, no adapter and no model.

Usually an adapter acts on the whole sequence. An activated one (aLoRA) acts from where its invocation stands, and what
comes before is computed as without it, so that this part can be shared with requests that do not use it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

Scales = tuple[float, ...]
"""One for each adapter that the model was loaded with; empty when none acts."""

ALL = sys.maxsize


@dataclass(frozen=True, slots=True)
class Activation:
    """`scales` act on the tokens from `begin` on."""

    scales: Scales = ()
    begin: int = 0

    def at(self, position: int) -> Scales:
        return self.scales if position >= self.begin else ()

    def uniform_length(self, position: int, end: int) -> int:
        """How many of the tokens position … end are computed with the same adapters."""
        return (self.begin if position < self.begin else end) - position

    def common_length(self, other: Activation) -> int:
        """How many tokens are computed as under `other`, counted from the first one.

        Behind an invocation nothing counts as alike, as in llama-server: it is computed anew for every request.
        """
        if self == other and self.begin == 0:
            return ALL
        return min(self._untouched, other._untouched)

    def reusable_length(self, n: int) -> int:
        """How many of the first `n` tokens can serve anybody else."""
        return min(n, self.common_length(self))

    def with_removed(self, begin: int, end: int) -> Activation:
        """Once the tokens begin … end are gone and those behind them have moved down."""
        n_gone = max(0, min(self.begin, end) - begin)
        return Activation(self.scales, self.begin - n_gone)

    @property
    def _untouched(self) -> int:
        return self.begin if self.scales else ALL


BASE = Activation()
"""No adapter acts."""


def activation(scales: Scales, begin: int = 0) -> Activation:
    return Activation(scales, max(0, begin)) if any(scales) else BASE


def last_occurrence(tokens: Sequence[int], wanted: Sequence[int]) -> int:
    """Where `wanted` last begins in `tokens`; -1 when it does not occur."""
    n, wanted = len(wanted), list(wanted)
    for start in range(len(tokens) - n, -1, -1):
        if tokens[start] == wanted[0] and list(tokens[start : start + n]) == wanted:
            return start
    return -1
