"""Gives memory that was freed back to the system: glibc keeps it otherwise."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Takes some milliseconds. Does nothing where the C library has no such function."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
