"""Characters that tokens cut: a token may end inside of one. Pure; used wherever an answer's bytes are looked at."""

from __future__ import annotations


def incomplete_tail(data: bytes | bytearray) -> bool:
    """Whether the last character lacks bytes that may still come."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return back < needs
    return False
