"""Chooses another slot from which a prompt can copy its prefix: one that has computed it, or is computing it. Pure.

A prefix that several requests share is computed once and copied between their sequences. llama-server does this only
for the choices of one request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MIN_GAIN = 64
"""Minimum number of tokens gained: for fewer it is not worth to copy or to wait."""


class Candidate(NamedTuple):
    """Another slot and how much it has in common with a prompt."""

    slot: int
    n_computed: int  # tokens of the prompt that are in its sequence
    n_coming: int = 0  # tokens of the prompt that will be in it, once its own prompt is computed
    can_cut: bool = True  # True if a copy of its sequence can be cut to n_computed tokens


class PrefixSource(NamedTuple):
    slot: int
    n: int  # tokens to copy
    ready: bool  # False: wait until they are computed


def choose_source(n_own: int, candidates: Iterable[Candidate], n_prompt: int, least_gain: int) -> PrefixSource | None:
    """Return the slot to copy from or to wait for; None if the slot's own `n_own` cached tokens are nearly as good.

    The last token of a prompt is never shared, because its logits are needed.
    """
    candidates = list(candidates)
    now = max((PrefixSource(c.slot, min(c.n_computed, n_prompt - 1), True) for c in candidates if c.can_cut),
              key=lambda source: source.n, default=None)  # fmt: skip
    later = max((PrefixSource(c.slot, min(c.n_coming, n_prompt - 1), False) for c in candidates if c.n_coming >
    c.n_computed),
                key=lambda source: source.n, default=None)  # fmt: skip
    n_now = max(n_own, now.n if now else 0)
    if later is not None and later.n - n_now >= least_gain:
        return later
    if now is not None and now.n - n_own >= least_gain:
        return now
    return None
