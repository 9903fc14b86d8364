"""The input of one llama_decode, as arrays that numpy fills. Does not use slots or requests."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .llama import C


class Batch:
    """Rows of (token, position, sequence, output flag), at most `capacity`: llama.cpp aborts the process above it."""

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
        """Add one row with output for each of several sequences."""
        begin, end = self._grow(len(tokens))
        self._token[begin:end] = tokens
        self._pos[begin:end] = positions
        self._seq[begin:end] = sequences
        self._output[begin:end] = 1

    def add_run(self, tokens: Sequence[int], position: int, sequence: int, output: bool) -> None:
        """Add consecutive tokens of one sequence, all or none with output. `position` is that of the first."""
        begin, end = self._grow(len(tokens))
        self._token[begin:end] = tokens
        self._pos[begin:end] = self._steps[: end - begin] + position
        self._seq[begin:end] = sequence
        self._output[begin:end] = output

    def want_output(self, row: int) -> None:
        self._output[row] = 1

    def view(self, begin: int, n: int) -> Any:
        """Return the llama_batch of rows begin … begin + n. Raises ValueError if there are not as many rows."""
        if not 0 < n <= self.size - begin:
            raise ValueError(f"rows {begin} to {begin + n} of {self.size}")
        if begin == 0:
            self._whole.n_tokens = n
            return self._whole
        return self._struct(begin, n)

    def _vectors_at(self, begin: int) -> Any:
        return None

    def _struct(self, begin: int, n: int) -> Any:
        return C.llama_batch(
            n,
            _at(self._token, begin, ctypes.c_int32),
            self._vectors_at(begin),
            _at(self._pos, begin, ctypes.c_int32),
            _at(self._ones, begin, ctypes.c_int32),
            _at(self._seq_pointers, begin, ctypes.POINTER(ctypes.c_int32)),
            _at(self._output, begin, ctypes.c_int8),
        )

    def _grow(self, n: int) -> tuple[int, int]:
        begin, end = self.size, self.size + n
        if end > self.capacity:
            raise ValueError(f"{end} rows do not fit into a batch of {self.capacity}")
        self.size = end
        return begin, end


class HeadBatch(Batch):
    """A batch for an MTP head: each row contains a token and the hidden state of the token before it."""

    def __init__(self, capacity: int, n_hidden: int) -> None:
        self._states = np.zeros((capacity, n_hidden), np.float32)
        super().__init__(capacity)

    @property
    def room(self) -> int:
        return self.capacity - self.size

    def add_states(self, states: Sequence[NDArray[np.float32]]) -> None:
        """Set the hidden states of the rows that are added next. Each has the shape (n_hidden,)."""
        begin = self.size
        self._states[begin : begin + len(states)] = states

    def _vectors_at(self, begin: int) -> Any:
        return _at(self._states, begin * self._states.shape[1], ctypes.c_float)


class MediaBatch:
    """An image or a section of audio for one sequence: vectors instead of tokens.

    `vectors` has the shape (rows, n_embd), `positions` (1, rows), or (4, rows) with M-RoPE.
    """

    def __init__(
        self, vectors: NDArray[np.float32], positions: NDArray[np.int32], sequence: int, n_outputs: int
    ) -> None:
        """`n_outputs`: number of last rows that have outputs."""
        self.size = n = len(vectors)
        self._vectors, self._positions = vectors, positions
        self._ones, self._seq = np.ones(n, np.int32), np.full(n, sequence, np.int32)
        self._seq_pointers = np.full(n, self._seq.ctypes.data, np.uint64)
        self._output = np.zeros(n, np.int8)
        self._output[n - n_outputs :] = 1

    def view(self, begin: int, n: int) -> Any:
        """Return the llama_batch of rows begin … begin + n, valid until the next call. Raises ValueError."""
        if not 0 < n <= self.size - begin:
            raise ValueError(f"rows {begin} to {begin + n} of {self.size}")
        self._shown = np.ascontiguousarray(self._positions[:, begin : begin + n])
        return C.llama_batch(
            n,
            None,
            _at(self._vectors, begin * self._vectors.shape[1], ctypes.c_float),
            _at(self._shown, 0, ctypes.c_int32),
            _at(self._ones, begin, ctypes.c_int32),
            _at(self._seq_pointers, begin, ctypes.POINTER(ctypes.c_int32)),
            _at(self._output, begin, ctypes.c_int8),
        )


def _at(array: NDArray[Any], row: int, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data + row * array.itemsize, ctypes.POINTER(kind))
