"""Describes which adapters are active for which tokens of a sequence. Pure: knows scales and positions, no model.

Usually an adapter is active for the whole sequence. An activated LoRA (aLoRA) is active from its invocation tokens on;
the tokens before them are computed without it, so requests that do not use the adapter can share them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from msgspec import Struct

Scales = tuple[float, ...]
"""One scale for each adapter that the model was loaded with; empty if none is active."""

ALL = sys.maxsize


class Activation(Struct, frozen=True):
    """The adapters with `scales` are active for all tokens from position `begin` on."""

    scales: Scales = ()
    begin: int = 0

    def at(self, position: int) -> Scales:
        return self.scales if position >= self.begin else ()

    def uniform_length(self, position: int, end: int) -> int:
        """Return how many of the tokens position … end - 1, from `position` on, are computed with the same adapters."""
        return (self.begin if position < self.begin else end) - position

    def common_length(self, other: Activation) -> int:
        """Return how many tokens, counted from the first one, both activations compute in the same way.

        Tokens after an invocation never count as equal, as in llama-server: every request computes them again.
        """
        if self == other and self.begin == 0:
            return ALL
        return min(self._untouched, other._untouched)

    def reusable_length(self, n: int) -> int:
        """Return how many of the first `n` tokens another request can reuse."""
        return min(n, self.common_length(self))

    def with_removed(self, begin: int, end: int) -> Activation:
        """Return the activation after tokens begin … end - 1 were removed and the later ones moved down."""
        n_gone = max(0, min(self.begin, end) - begin)
        return Activation(self.scales, self.begin - n_gone)

    @property
    def _untouched(self) -> int:
        return self.begin if self.scales else ALL


BASE = Activation()
"""No adapter is active."""


def activation(scales: Scales, begin: int = 0) -> Activation:
    return Activation(scales, max(0, begin)) if any(scales) else BASE


def last_occurrence(tokens: Sequence[int], wanted: Sequence[int]) -> int:
    """Return the index at which `wanted` last occurs in `tokens`, or -1 if it does not occur."""
    n, wanted = len(wanted), list(wanted)
    for start in range(len(tokens) - n, -1, -1):
        if tokens[start] == wanted[0] and list(tokens[start : start + n]) == wanted:
            return start
    return -1
