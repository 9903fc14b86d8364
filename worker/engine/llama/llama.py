"""The bridge to llama.cpp: the only module that imports llama_cpp; owns its process-wide state (log, backends).

Used by the other modules of this package only. `C` holds the bindings (every call releases the GIL), `fast` a second
handle on the same library, for calls shorter than the GIL's hand-over. Knows nothing of requests.
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
"""Functions of llama.cpp that are no part of its C interface: hidden states for MTP heads."""
lib: Any = C._lib
"""The loaded libllama; dlsym on it reaches the ggml libraries too."""

_fast: Any = ctypes.PyDLL(lib._name)


def function_of(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.argtypes = list(arguments)
    function.restype = result
    return function


class fast:
    """Calls of a microsecond or less that keep the GIL."""

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
    """A view, not a copy."""
    buffer: Any = (ctypes.c_float * n).from_address(address)
    array: NDArray[np.float32] = np.frombuffer(buffer, np.float32)
    return array


# -- log ---------------------------------------------------------------------------------------------------------------

TRACE = 5
"""Level of llama.cpp's debug lines: below logging.DEBUG, which its info lines get, since they are many."""

_LEVELS = {1: TRACE, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUES = 5

complaints: deque[str] = deque(maxlen=20)
"""llama.cpp's latest error lines: why a load failed is said only there."""


class _LogLines:
    """Joins llama.cpp's pieces of text to lines. Called by C threads; keeps no lock of its own."""

    def __init__(self) -> None:
        self.expects_errors = False
        """While a decode is being aborted: llama.cpp calls that an error, in several lines."""
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
C.llama_log_set(_log_callback, ctypes.c_void_p(0))  # importing llama_cpp has installed a printer of its own


# -- backends ----------------------------------------------------------------------------------------------------------


@functools.cache
def start_backends(numa: int = 0) -> None:
    """Once per process, before anything else of this package."""
    C.llama_backend_init()
    if numa:
        C.llama_numa_init(numa)


ABORT_TEST = ctypes.cast(ctypes.CDLL(None).atoi, ctypes.c_void_p) if os.name == "posix" else None
"""An abort callback that needs no GIL: libc's atoi on one byte of text, which is "0" or "1"."""
