"""How much of a new prompt a slot has already computed. Called by the engine thread when a slot begins a prompt."""

from __future__ import annotations

from .activation import ALL, Activation
from .context import Context
from .messages import Embedding, Generation
from .slots import Slot, common_prefix


def reusable_prefix(
    slot: Slot, request: Generation | Embedding, activation: Activation, context: Context, n_swa: int
) -> int:
    """Brings the slot's memory to the longest usable beginning of the prompt and returns its length.

    At least one token of the prompt is left to compute, because its logits are wanted.
    """
    prompt = request.tokens
    n_past = 0
    if isinstance(request, Generation) and request.cache_prompt:
        n_past = slot.common(prompt, activation)
        if request.n_cache_reuse > 0 and context.can_shift and slot.activation.alike(activation) == ALL:
            n_past = _shift_matching_runs(
                slot, prompt if isinstance(prompt, list) else list(prompt), n_past, request, context
            )
        n_past = _within_memory(slot, n_past, len(prompt), context, n_swa)
    if n_past == len(prompt) and n_past > 0:
        n_past -= 1
    if not context.keep_first(slot.id, n_past):
        context.forget(slot.id)
        n_past = 0
    return n_past


def _within_memory(slot: Slot, n_past: int, n_prompt: int, context: Context, n_swa: int) -> int:
    """Sliding-window and recurrent memories have lost what came before their window: then nothing can be reused.

    Checkpoints of such memories would be looked up here.
    """
    if n_past == 0:
        return 0
    first = context.first_position(slot.id)
    needed = max(0, n_past - n_swa - (0 if n_past < n_prompt else 1))
    return 0 if first < 0 or first >= needed else n_past


def _shift_matching_runs(slot: Slot, prompt: list[int], n_past: int, request: Generation, context: Context) -> int:
    """Moves later runs of equal tokens, at least `n_cache_reuse` long, to where the new prompt has them."""
    old = slot.tokens
    head_old = head_new = n_past
    while head_old < len(old) and head_new < len(prompt):
        n = common_prefix(old[head_old:], prompt[head_new:])
        if n < request.n_cache_reuse:
            head_old += 1
            continue
        context.shift(slot.id, head_old, head_old + n, head_new)
        old[head_new : head_new + n] = prompt[head_new : head_new + n]
        head_old, head_new, n_past = head_old + n, head_new + n, n_past + n
    return n_past
