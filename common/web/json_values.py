"""Limits the number of values in a JSON text before it is parsed: each one needs memory, and time in which nothing
else runs in the process. Pure."""

from __future__ import annotations

import re

from ..base.errors import BodyTooLarge

MAX_VALUES = 1_000_000
"""The largest number of values in one request; a prompt of a million tokens has so many."""
MAX_ITEMS = 200_000
"""The largest number of arrays, objects and texts in one request; names of fields are texts, too. They need ten times
the time of numbers."""
_PIECE = 128 << 10
"""Bytes that are counted at a time: threads take turns between two pieces."""
_STRUCTURE = b'",[{'
_OTHERS = bytes(byte for byte in range(256) if byte not in _STRUCTURE)
_TEXTS = re.compile(rb'"[^"]*"')


def check_values(body: bytes) -> None:
    """Raise BodyTooLarge if the JSON text `body` has too many values. Characters inside of texts do not count."""
    n_values, n_items = _counted(body)
    if n_values <= MAX_VALUES and n_items <= MAX_ITEMS:
        return
    n_values, n_items = _counted_outside_texts(body)
    for n, limit, what in ((n_values, MAX_VALUES, "values"), (n_items, MAX_ITEMS, "arrays, objects and texts")):
        if n > limit:
            raise BodyTooLarge(f"the request body must have at most {limit} {what}, but has at least {n}")


def _counted(text: bytes) -> tuple[int, int]:
    """Return the number of commas, and of opening brackets, braces and pairs of quotation marks."""
    n_values = n_items = n_quotes = 0
    for at in range(0, len(text), _PIECE):
        piece = text[at : at + _PIECE]
        n_values += piece.count(b",")
        n_items += piece.count(b"[") + piece.count(b"{")
        n_quotes += piece.count(b'"')
    return n_values, n_items + n_quotes // 2


def _counted_outside_texts(body: bytes) -> tuple[int, int]:
    """Return the numbers; if one is above its limit, those of the beginning of the body."""
    n_values = n_items = at = 0
    rest = b""  # the beginning of a text that ends in a later piece
    while at < len(body) and n_values <= MAX_VALUES and n_items <= MAX_ITEMS:
        piece = body[at : at + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # not between a backslash and the character after it
            piece = body[at : at + _PIECE + 1]
        at += len(piece)
        structure = rest + piece.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
        outside, n_texts = _TEXTS.subn(b"", structure)
        before, rest, _ = outside.partition(b'"')  # what is inside of the text that begins here does not matter
        values, items = _counted(before)
        n_values, n_items = n_values + values, n_items + items + n_texts
    return n_values, n_items
