"""Reads the vectors of one input from the context's outputs. Called by the engine thread after a decode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..messages import Embedded, Embedding
from .context import Context
from .llama import C
from .model import Model

Vector = NDArray[np.float32]


def embedded(context: Context, model: Model, sequence: int, rows: Sequence[int], request: Embedding) -> Embedded:
    """Return the result of an embedding request whose tokens are the given rows of the last batch.

    It has one vector per token without pooling, one score per class with rank pooling, else one normalised vector.
    """
    n_tokens = len(request.tokens)
    if context.pooling_name == "none":
        vectors = [context.token_embedding(row, model.n_embd_out) for row in rows]
        return Embedded([_or_zero(vector, model)[: request.dimensions].tolist() for vector in vectors], n_tokens)
    if context.pooling_name == "rank":
        scores = context.sequence_embedding(sequence, max(1, C.llama_model_n_cls_out(model.pointer)))
        return Embedded([scores.tolist() if scores is not None else [-1e6]], n_tokens)
    vector = _or_zero(context.sequence_embedding(sequence, model.n_embd_out), model)[: request.dimensions]
    return Embedded([normalize(vector, request.normalize).tolist()], n_tokens)


def _or_zero(vector: Vector | None, model: Model) -> Vector:
    return vector if vector is not None else np.zeros(model.n_embd_out, np.float32)


def normalize(vector: Vector, kind: int) -> Vector:
    """Normalise a vector. `kind` -1: unchanged, 0: largest magnitude 32760 (fits 16 bits), 2: length 1, p: p-norm 1."""
    if kind == -1:
        return vector
    magnitudes = np.abs(vector.astype(np.float64))
    if kind == 0:
        norm = magnitudes.max(initial=0.0) / 32760.0
    else:
        norm = np.power(np.power(magnitudes, kind).sum(), 1.0 / kind)
    return (vector * np.float32(1.0 / norm if norm > 0 else 0.0)).astype(np.float32)
