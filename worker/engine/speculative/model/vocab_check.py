"""Checks if two models have the same tokens, so that one can draft for the other, by llama-server's rules."""

from __future__ import annotations

from ...llama.llama import C
from ...llama.vocab import Vocab

MAX_DIFFERENCE = 128
"""Most tokens by which the sizes of the vocabularies may differ, for instance because a matrix is padded."""
FIRST_COMPARED = 5
"""The first token whose text is compared; the special tokens before it may differ."""


def difference(main: Vocab, draft: Vocab) -> str | None:
    """Return the reason why `draft` cannot draft for `main`, or None if it can."""
    if main.type != draft.type:
        return "their vocabularies are of different kinds"
    if main.add_bos != draft.add_bos or (main.add_bos and main.bos != draft.bos):
        return "they begin texts with different tokens"
    if main.add_eos != draft.add_eos or (main.add_eos and main.eos != draft.eos):
        return "they end texts with different tokens"
    if abs(main.n_vocab - draft.n_vocab) > MAX_DIFFERENCE:
        return f"their vocabularies have {main.n_vocab} and {draft.n_vocab} tokens"
    text = C.llama_vocab_get_text
    for token in range(FIRST_COMPARED, min(main.n_vocab, draft.n_vocab)):
        if text(main.pointer, token) != text(draft.pointer, token):
            return f"token {token} has different texts"
    return None
