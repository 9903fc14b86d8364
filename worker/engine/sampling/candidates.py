"""The tokens from which llama.cpp's samplers choose, as a llama_token_data_array."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llama_corral.common.base.errors import ServerFault
from numpy.typing import NDArray

from ..llama.llama import C

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

SMALL_VOCAB = 4096
"""Up to this size it is faster to test all tokens against a grammar in one call."""

Logits = NDArray[np.float32]


class TokenCandidates:
    """The vocabulary, or a part of it, as a llama_token_data_array for llama.cpp's samplers."""

    def __init__(self, n_vocab: int) -> None:
        self._data = np.zeros(n_vocab, CANDIDATE)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._array = C.llama_token_data_array()
        self.reference = ctypes.byref(self._array)

    def fill(self, logits: Logits) -> None:
        self._fill(self._ids, logits)

    def fill_some(self, tokens: NDArray[np.int32], logits: Logits) -> None:
        self._fill(tokens, logits[tokens])

    def _fill(self, tokens: NDArray[np.int32], logits: Logits) -> None:
        n = len(tokens)
        part = self._data[:n]
        part["id"] = tokens
        part["logit"] = logits
        part["p"] = 0.0
        self._array.data = ctypes.cast(self._data.ctypes.data, C.llama_token_data_p)
        self._array.size = n
        self._array.selected = -1
        self._array.sorted = False

    def choose(self, chain: Any) -> int:
        C.llama_sampler_apply(chain, self.reference)
        if not 0 <= self._array.selected < self._array.size:
            raise ServerFault("the samplers chose no token")
        return int(self._array.data[self._array.selected].id)

    def by_probability(self) -> np.ndarray[Any, np.dtype[Any]]:
        address = ctypes.cast(self._array.data, ctypes.c_void_p).value
        buffer = (ctypes.c_char * (CANDIDATE.itemsize * self._array.size)).from_address(address)
        rows = np.frombuffer(buffer, CANDIDATE)
        return rows[np.argsort(-rows["p"], kind="stable")]
