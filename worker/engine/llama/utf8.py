"""Detects characters that are cut by the end of a token. Pure."""

from __future__ import annotations


def incomplete_tail(data: bytes | bytearray) -> int:
    """Return the number of bytes of an incomplete UTF-8 character at the end; the next token may complete it."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return back if back < needs else 0
    return 0
