"""Reuses the part of a new prompt that a slot has already computed. `slot_memory` calls it at the start of a prompt."""

from __future__ import annotations

from ..adapters.activation import ALL, Activation
from ..batching.checkpoints import position_after, usable
from ..batching.media_tokens import last_start
from ..batching.prefix import common_run
from ..batching.slots import Slot
from ..llama.context import Context
from ..messages import Embedding, Generation


def reusable_prefix(
    slot: Slot, request: Generation | Embedding, activation: Activation, context: Context, n_swa: int
) -> int:
    """Cut the slot's sequence to the longest usable prefix of the prompt and return its length in tokens.

    At least one token of the prompt is left to compute, because its logits are needed.
    """
    prompt = request.tokens
    n_past = 0
    if isinstance(request, Generation) and request.cache_prompt:
        n_past = slot.common(prompt, activation)
        if _may_shift(slot, request, activation, context):
            n_past = _shift_matching_runs(slot, list(prompt), n_past, request.n_cache_reuse, context)
        if request.media and n_past == len(prompt):
            n_past = last_start(request.media, n_past)
        n_past = _within_memory(slot, n_past, len(prompt), context, n_swa)
    slot.checkpoints = [point for point in slot.checkpoints if point.last <= slot.position_after(n_past)]
    if n_past == len(prompt) and n_past > 0:
        n_past -= 1
    if not context.truncate(slot.id, slot.position_after(n_past)):
        context.clear_sequence(slot.id)
        slot.checkpoints = []
        n_past = 0
    return n_past


def _within_memory(slot: Slot, n_past: int, n_prompt: int, context: Context, n_swa: int) -> int:
    """Return how many of `n_past` tokens the memory can be cut to.

    Sliding-window and recurrent memories do not contain older positions: they can only go back to a checkpoint, which
    is loaded here.
    """
    if n_past == 0 or (n_past == len(slot.tokens) and n_past < n_prompt):
        return n_past  # nothing is cut off
    first, position = context.first_position(slot.id), slot.position_after(n_past)
    needed = max(0, position - n_swa - (0 if n_past < n_prompt else 1))
    if 0 <= first < needed:
        return n_past
    checkpoint = usable(slot.checkpoints, position, needed) if first >= 0 else None
    if checkpoint is None or not context.write_state(slot.id, checkpoint.state, part=True):
        return 0
    return min(slot.tokens_before(position_after(checkpoint, position)), checkpoint.n_tokens)


# -- shifted runs of tokens --------------------------------------------------------------------------------------------


def _may_shift(slot: Slot, request: Generation, activation: Activation, context: Context) -> bool:
    """Return True if runs may be shifted in the slot. Copies shared cells first: a shift would move them for all."""
    if request.n_cache_reuse <= 0 or not context.can_shift or slot.activation.common_length(activation) != ALL:
        return False
    if context.model.options.projector is not None:  # images cannot move
        return False
    return make_private(slot, context)


def make_private(slot: Slot, context: Context) -> bool:
    """Give the slot its own copy of cells that it shares. Return False if there is no room: then the slot is empty."""
    if not slot.shares_cells:
        return True
    state = context.read_state(slot.id)
    context.clear_sequence(slot.id)
    if state is None or not context.write_state(slot.id, state):
        context.clear_sequence(slot.id)
        slot.set_contents([], slot.activation)
        return False
    slot.shares_cells = False
    return True


def _shift_matching_runs(slot: Slot, prompt: list[int], n_past: int, n_least: int, context: Context) -> int:
    """Shift later runs of equal tokens, at least `n_least` long, to their positions in the new prompt.

    Returns the new number of reusable tokens. llama-server's `n_cache_reuse`.
    """
    old = slot.tokens
    slot.checkpoints = [checkpoint for checkpoint in slot.checkpoints if checkpoint.last < n_past]
    head_old = head_new = n_past
    while head_old < len(old) and head_new < len(prompt):
        n = common_run(old, head_old, prompt, head_new)
        if n < n_least:
            head_old += 1
            continue
        context.shift(slot.id, head_old, head_old + n, head_new)
        old[head_new : head_new + n] = prompt[head_new : head_new + n]
        head_old, head_new, n_past = head_old + n, head_new + n, n_past + n
    return n_past
