"""Limits the number of values in a JSON text before it is parsed: each one needs memory, and time in which nothing
else runs in the process. Pure."""

from __future__ import annotations

import re

from ..base.errors import BodyTooLarge

MAX_VALUES = 1_000_000
"""The largest number of values in one request; a prompt of a million tokens has so many."""
MAX_CONTAINERS = 200_000
"""The largest number of arrays and objects in one request. They need ten times the time of numbers."""
_PIECE = 1 << 20
"""Bytes that are counted at a time: threads take turns between two pieces."""
_STRUCTURE = b'",[{'
_TEXT = bytes(byte for byte in range(256) if byte not in _STRUCTURE)
_STRINGS = re.compile(rb'"[^"]*"')


def check_values(body: bytes) -> None:
    """Raise BodyTooLarge if the JSON text `body` has too many values. Text inside of strings does not count."""
    n_values, n_containers = _counted(body)
    if n_values <= MAX_VALUES and n_containers <= MAX_CONTAINERS:
        return
    n_values, n_containers = _counted_outside_strings(body)
    for n, limit, what in ((n_values, MAX_VALUES, "values"), (n_containers, MAX_CONTAINERS, "arrays and objects")):
        if n > limit:
            raise BodyTooLarge(f"the request body must have at most {limit} {what}, but has about {n}")


def _counted(text: bytes) -> tuple[int, int]:
    """Return the number of commas, and of opening brackets and braces."""
    n_values = n_containers = 0
    for at in range(0, len(text), _PIECE):
        piece = text[at : at + _PIECE]
        n_values += piece.count(b",")
        n_containers += piece.count(b"[") + piece.count(b"{")
    return n_values, n_containers


def _counted_outside_strings(body: bytes) -> tuple[int, int]:
    n_values = n_containers = 0
    rest = b""  # the beginning of a string that ends in a later piece
    at = 0
    while at < len(body):
        piece = body[at : at + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # not between a backslash and the character after it
            piece = body[at : at + _PIECE + 1]
        at += len(piece)
        structure = rest + piece.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _TEXT)
        outside = _STRINGS.sub(b"", structure)
        before, quote, _ = outside.partition(b'"')
        rest = quote  # what is inside of this string does not matter
        values, containers = _counted(before)
        n_values, n_containers = n_values + values, n_containers + containers
    return n_values, n_containers
