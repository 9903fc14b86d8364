"""The input of one llama_decode: arrays allocated once and filled through numpy. Knows nothing of slots or requests."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .llama import C


class Batch:
    """Rows of (token, position, sequence, wants output), never more than `capacity`: llama.cpp aborts above it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._seq = np.zeros(capacity, np.int32)
        self._output = np.zeros(capacity, np.int8)
        self._ones = np.ones(capacity, np.int32)
        self._seq_pointers: NDArray[np.uint64] = (
            self._seq.ctypes.data + self._seq.itemsize * np.arange(capacity)
        ).astype(np.uint64)
        self._steps = np.arange(capacity, dtype=np.int32)
        self._whole = self._struct(0, 0)

    def clear(self) -> None:
        self.size = 0

    def add_rows(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """One row with output for each of several sequences."""
        begin, end = self._grow(len(tokens))
        self._token[begin:end] = tokens
        self._pos[begin:end] = positions
        self._seq[begin:end] = sequences
        self._output[begin:end] = 1

    def add_run(self, tokens: Sequence[int], position: int, sequence: int, output: bool) -> None:
        """Consecutive tokens of one sequence, all or none with output."""
        begin, end = self._grow(len(tokens))
        self._token[begin:end] = tokens
        self._pos[begin:end] = self._steps[: end - begin] + position
        self._seq[begin:end] = sequence
        self._output[begin:end] = output

    def want_output(self, row: int) -> None:
        self._output[row] = 1

    def view(self, begin: int, n: int) -> Any:
        """The llama_batch of rows begin … begin + n."""
        if not 0 < n <= self.size - begin:
            raise ValueError(f"rows {begin} to {begin + n} of {self.size}")
        if begin == 0:
            self._whole.n_tokens = n
            return self._whole
        return self._struct(begin, n)

    def _struct(self, begin: int, n: int) -> Any:
        return C.llama_batch(
            n,
            _at(self._token, begin, ctypes.c_int32),
            None,
            _at(self._pos, begin, ctypes.c_int32),
            _at(self._ones, begin, ctypes.c_int32),
            _at(self._seq_pointers, begin, ctypes.POINTER(ctypes.c_int32)),
            _at(self._output, begin, ctypes.c_int8),
        )

    def _grow(self, n: int) -> tuple[int, int]:
        begin, end = self.size, self.size + n
        if end > self.capacity:
            raise ValueError(f"{end} rows in a batch of {self.capacity}")
        self.size = end
        return begin, end


def _at(array: NDArray[Any], row: int, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data + row * array.itemsize, ctypes.POINTER(kind))
