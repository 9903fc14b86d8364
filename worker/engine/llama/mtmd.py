"""The bridge to llama.cpp's library for images and audio. Only this module imports its bindings.

Imported by `projector`, which is imported only if a projector is loaded: most workers do not need the library.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.mtmd_cpp as _bindings

from .llama import C, log_lines

M: Any = _bindings

_log_callback = C.llama_log_callback(log_lines)
M.mtmd_helper_log_set(_log_callback, ctypes.c_void_p(0))  # also sets the log callback of mtmd itself


def text(pointer: bytes | None) -> str:
    return pointer.decode("utf-8", "surrogateescape") if pointer else ""
