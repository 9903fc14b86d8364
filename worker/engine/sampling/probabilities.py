"""Computes the probabilities of a sampled token and of the most likely tokens.

Only if the request wants them: this takes longer than sampling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..llama.context import Context
from ..llama.vocab import Vocab
from ..messages import Sampling, TokenProb, TokenProbs
from .sampler import Sampler

LOWEST = float(np.finfo(np.float32).min)
"""Used for the logarithm of 0, which JSON cannot express."""


def probabilities(sampler: Sampler, context: Context, row: int, token: int, of: Sampling, special: bool) -> TokenProbs:
    """Return the probabilities of the token that was just sampled from this row, as requested."""
    vocab = context.model.vocab
    if of.post_sampling_probs:
        return after_sampling(sampler.candidates(), token, of.n_probs, vocab, special)
    return before_sampling(context.logits(row), token, of.n_probs, vocab, special)


def before_sampling(logits: NDArray[np.float32], token: int, n: int, vocab: Vocab, special: bool) -> TokenProbs:
    """Return natural logarithms of the model's own probabilities, for `token` and the `n` most likely tokens.

    `logits` has the shape (n_vocab,).
    """
    peak = float(logits.max())
    total = peak + float(np.log(np.exp(logits - peak, dtype=np.float32).sum(dtype=np.float64)))

    def entry(id: int) -> TokenProb:
        return TokenProb(id, _piece(vocab, id, special), max(float(logits[id]) - total, LOWEST))

    return TokenProbs(entry(token), tuple(entry(int(id)) for id in _most_likely(logits, n)))


def _most_likely(logits: NDArray[np.float32], n: int) -> NDArray[np.intp]:
    """Return the ids of the `n` highest logits, highest first."""
    n = min(n, len(logits))
    if n <= 0:
        return np.empty(0, np.intp)
    top = np.argpartition(-logits, n - 1)[:n]
    return top[np.argsort(-logits[top], kind="stable")]


def after_sampling(
    candidates: np.ndarray[Any, np.dtype[Any]], token: int, n: int, vocab: Vocab, special: bool
) -> TokenProbs:
    """Return probabilities among the candidates that the samplers kept, most likely first, without those of 0.

    `candidates` are the rows of `Sampler.candidates`.
    """
    chosen = candidates["p"][candidates["id"] == token]
    top = candidates[:n]
    return TokenProbs(
        TokenProb(token, _piece(vocab, token, special), float(chosen[0]) if len(chosen) else 1.0),
        tuple(TokenProb(int(c["id"]), _piece(vocab, int(c["id"]), special), float(c["p"])) for c in top if c["p"] > 0),
    )


def _piece(vocab: Vocab, token: int, special: bool) -> bytes:
    return vocab.piece(token) if special else vocab.plain_piece(token)
