"""The bridge to llama.cpp: imports its bindings and owns its process-wide state (log, backends).

`C` contains the bindings, whose calls release the GIL; `fast` calls the same library without releasing the GIL, for
calls shorter than a GIL switch. Does not know requests.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections import deque
from typing import Any

import llama_cpp.llama_cpp as _bindings
import llama_cpp.llama_cpp_ext as _more_bindings
import numpy as np
from numpy.typing import NDArray

from .memory_log import allocations

log = logging.getLogger("corral.llama")

C: Any = _bindings
EXT: Any = _more_bindings
"""Functions of llama.cpp outside of its C interface: hidden states for MTP heads."""
lib: Any = C._lib
"""The loaded libllama. dlsym on it also finds the symbols of the ggml libraries."""

_fast: Any = ctypes.PyDLL(lib._name)


def function_of(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.argtypes = list(arguments)
    function.restype = result
    return function


class fast:
    """Calls of at most a microsecond, which do not release the GIL."""

    _p = ctypes.c_void_p
    _i = ctypes.c_int32
    logits_ith = staticmethod(function_of(_fast, "llama_get_logits_ith", _p, _p, _i))
    embeddings_ith = staticmethod(function_of(_fast, "llama_get_embeddings_ith", _p, _p, _i))
    embeddings_seq = staticmethod(function_of(_fast, "llama_get_embeddings_seq", _p, _p, _i))
    is_eog = staticmethod(function_of(_fast, "llama_vocab_is_eog", ctypes.c_bool, _p, _i))
    attributes = staticmethod(function_of(_fast, "llama_vocab_get_attr", ctypes.c_int, _p, _i))
    to_piece = staticmethod(
        function_of(_fast, "llama_token_to_piece", _i, _p, _i, ctypes.c_char_p, _i, _i, ctypes.c_bool)
    )
    accept = staticmethod(function_of(_fast, "llama_sampler_accept", None, _p, _i))
    seq_rm = staticmethod(function_of(_fast, "llama_memory_seq_rm", ctypes.c_bool, _p, _i, _i, _i))
    seq_cp = staticmethod(function_of(_fast, "llama_memory_seq_cp", None, _p, _i, _i, _i, _i))
    seq_pos_min = staticmethod(function_of(_fast, "llama_memory_seq_pos_min", _i, _p, _i))
    seq_pos_max = staticmethod(function_of(_fast, "llama_memory_seq_pos_max", _i, _p, _i))


def floats_at(address: int, n: int) -> NDArray[np.float32]:
    """Return `n` floats at a memory address, as a view without a copy."""
    buffer: Any = (ctypes.c_float * n).from_address(address)
    array: NDArray[np.float32] = np.frombuffer(buffer, np.float32)
    return array


# -- log ---------------------------------------------------------------------------------------------------------------

TRACE = 5
"""Log level of llama.cpp's debug lines. Its many info lines get logging.DEBUG."""

_LEVELS = {1: TRACE, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUES = 5

complaints: deque[str] = deque(maxlen=20)
"""llama.cpp's latest error lines: the only source of the reason of a failed load."""


class _LogLines:
    """Joins llama.cpp's pieces of log text to lines. Called by C threads; has no lock."""

    def __init__(self) -> None:
        self.expects_errors = False
        """True while a decode is aborted: llama.cpp logs several error lines for it."""
        self._level = TRACE
        self._pending = ""

    def __call__(self, level: int, text: bytes, _data: Any) -> None:
        if level != _CONTINUES:
            self._level = logging.DEBUG if self.expects_errors else _LEVELS.get(level, logging.INFO)
        is_wanted = self._level >= logging.ERROR or log.isEnabledFor(self._level)
        if not is_wanted:
            if b"buffer size" in text:
                allocations.note(text.decode("utf-8", "replace"))
            return
        self._pending += text.decode("utf-8", "replace")
        *lines, self._pending = self._pending.split("\n")
        for line in filter(None, lines):
            if self._level >= logging.ERROR:
                complaints.append(line)
            allocations.note(line)
            log.log(self._level, "%s", line)


log_lines = _LogLines()
_log_callback = C.llama_log_callback(log_lines)
C.llama_log_set(_log_callback, ctypes.c_void_p(0))  # replaces the log callback that llama_cpp's import installs


# -- backends ----------------------------------------------------------------------------------------------------------


@functools.cache
def start_backends(numa: int = 0) -> None:
    """Initialise llama.cpp's backends, once per process, before any other use of the library."""
    C.llama_backend_init()
    if numa:
        C.llama_numa_init(numa)


ABORT_TEST = ctypes.cast(ctypes.CDLL(None).atoi, ctypes.c_void_p) if os.name == "posix" else None
"""An abort callback that does not need the GIL: libc's atoi on a text of one byte, "0" or "1"."""
