"""Context shift: a full slot forgets a stretch of its context and goes on. Pure, but for `shift`.

Called by `core` on the engine thread, when `--context-shift` is on. The rules are llama-server's.
"""

from __future__ import annotations

from ..batching.slots import Slot
from ..llama.context import Context

SPARE = 4
"""Positions that are never kept, so that a shift always frees some."""


def shift_range(n_tokens: int, n_ctx: int, n_keep: int, n_discard: int) -> tuple[int, int]:
    """The positions to forget, begin … end. The first `n_keep` stay; `n_discard` 0 stands for half of the others."""
    begin = min(n_keep, n_ctx - SPARE)
    n_left = n_tokens - begin
    n = n_discard if n_discard else n_left // 2
    return begin, begin + min(n, max(0, n_left - 1))


def n_tokens_kept(n_keep: int, n_prompt: int, adds_bos: bool) -> int:
    """A request's n_keep, in which -1 stands for its whole prompt, counts no BOS that the tokenizer has added."""
    return (n_prompt if n_keep < 0 else n_keep) + adds_bos


def shift(slot: Slot, context: Context, n_keep: int, n_discard: int) -> tuple[int, int]:
    """For a slot whose cells are its own."""
    begin, end = shift_range(len(slot.tokens), slot.n_ctx, n_keep, n_discard)
    context.shift(slot.id, end, len(slot.tokens), begin)
    slot.activation = slot.activation.with_removed(begin, end)
    del slot.tokens[begin:end]
    slot.checkpoints = []
    return begin, end
