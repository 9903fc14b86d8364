"""Context shift: remove a range of a full slot's context, so that generation can continue.

Called by `core` on the engine thread if `--context-shift` is on. The rules are llama-server's. All functions but
`shift` are pure.
"""

from __future__ import annotations

from ..batching.slots import Slot
from ..llama.context import Context

SPARE = 4
"""Number of positions that `n_keep` never covers, so that a shift always frees some."""


def shift_range(n_tokens: int, n_ctx: int, n_keep: int, n_discard: int) -> tuple[int, int]:
    """Return the positions to remove, begin … end. The first `n_keep` are kept; `n_discard` 0: half of the others."""
    begin = min(n_keep, n_ctx - SPARE)
    n_left = n_tokens - begin
    n = n_discard if n_discard else n_left // 2
    return begin, begin + min(n, max(0, n_left - 1))


def n_tokens_kept(n_keep: int, n_prompt: int, adds_bos: bool) -> int:
    """Return the number of tokens to keep for a request's `n_keep`; -1: the whole prompt.

    `n_keep` does not count the BOS token that the tokenizer adds, so it is added here.
    """
    return (n_prompt if n_keep < 0 else n_keep) + adds_bos


def shift(slot: Slot, context: Context, n_keep: int, n_discard: int) -> tuple[int, int]:
    """Shift the slot's context and return the removed range, begin … end. The slot must not share its cells."""
    begin, end = shift_range(len(slot.tokens), slot.n_ctx, n_keep, n_discard)
    context.shift(slot.id, end, len(slot.tokens), begin)
    slot.activation = slot.activation.with_removed(begin, end)
    del slot.tokens[begin:end]
    slot.checkpoints = []
    return begin, end
