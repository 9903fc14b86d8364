"""The bridge to llama.cpp's library for images and audio: the only module that imports it.

Imported by `projector`, and by that only where a projector is loaded: most workers never need it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.mtmd_cpp as _bindings

from .llama import C, log_lines

M: Any = _bindings

_log_callback = C.llama_log_callback(log_lines)
M.mtmd_helper_log_set(_log_callback, ctypes.c_void_p(0))  # sets that of the other half as well


def text(pointer: bytes | None) -> str:
    return pointer.decode("utf-8", "surrogateescape") if pointer else ""
