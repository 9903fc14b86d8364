"""Limits the number of values in a JSON text before it is parsed: each one needs memory, and time in which nothing
else runs in the process. Pure.

It owns these limits. What a parser only skips costs little, so a rough count is enough (MAX_MARKS). Values that are
built cost more and are counted exactly (MAX_VALUES, MAX_OBJECTS_AND_TEXTS). Between the two are objects whose members
are kept as JSON texts (MAX_MEMBERS).
"""

from __future__ import annotations

import re

from ..base.errors import BodyTooLarge

MAX_VALUES = 1_000_000
"""The largest number of values in one request; a prompt of a million tokens has so many."""
MAX_OBJECTS_AND_TEXTS = 200_000
"""The largest number of arrays, objects and texts in one request; names of fields are texts, too. They need ten times
the time of numbers."""
MAX_MEMBERS = 1_000_000
"""The largest number of members of an object whose members are kept as JSON texts."""
MAX_MARKS = 4_000_000
"""The largest number of commas, colons, brackets and backslashes in JSON of which most is only skipped. Skipping takes
about 10 ns for each."""
_PIECE = 128 << 10
"""Bytes that are counted at a time: threads take turns between two pieces."""
_STRUCTURE, _MARKS = b'",[{', b",:[{\\"
_OTHERS, _NO_MARKS = (bytes(byte for byte in range(256) if byte not in kept) for kept in (_STRUCTURE, _MARKS))
_TEXTS = re.compile(rb'"[^"]*"')


def check_values(body: bytes) -> int:
    """Return the number of brackets and braces in the JSON text `body`, also inside of texts: it is not nested deeper.

    Raise BodyTooLarge if it has too many values. Characters inside of texts do not count for that.
    """
    n_values, n_brackets, n_texts = _counted(body)
    if n_values > MAX_VALUES or n_brackets + n_texts > MAX_OBJECTS_AND_TEXTS:
        n_values, n_items = _counted_outside_texts(body)
        for n, limit, what in (
            (n_values, MAX_VALUES, "values"),
            (n_items, MAX_OBJECTS_AND_TEXTS, "arrays, objects and texts"),
        ):
            if n > limit:
                raise BodyTooLarge(f"the request body must have at most {limit} {what}, but has at least {n}")
    return n_brackets


def check_members(body: bytes) -> None:
    """Raise BodyTooLarge if an object may have too many members. Colons inside of texts count, too."""
    if (n_colons := body.count(b":")) > MAX_MEMBERS:
        raise BodyTooLarge(f"the request body has more than {MAX_MEMBERS} members: {n_colons} colons")


def count_marks(piece: bytes) -> int:
    """Return the number of commas, colons, brackets, braces and backslashes, also inside of texts."""
    return len(piece.translate(None, _NO_MARKS))


def _counted(text: bytes) -> tuple[int, int, int]:
    """Return the number of commas, of opening brackets and braces, and of pairs of quotation marks."""
    n_values = n_brackets = n_quotes = 0
    for at in range(0, len(text), _PIECE):
        structure = text[at : at + _PIECE].translate(
            None, _OTHERS
        )  # one pass is faster than a count for each character
        n_values += structure.count(b",")
        n_brackets += structure.count(b"[") + structure.count(b"{")
        n_quotes += structure.count(b'"')
    return n_values, n_brackets, n_quotes // 2


def _counted_outside_texts(body: bytes) -> tuple[int, int]:
    """Return the numbers; if one is above its limit, those of the beginning of the body."""
    n_values = n_items = at = 0
    rest = b""  # the beginning of a text that ends in a later piece
    while at < len(body) and n_values <= MAX_VALUES and n_items <= MAX_OBJECTS_AND_TEXTS:
        piece = body[at : at + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # not between a backslash and the character after it
            piece = body[at : at + _PIECE + 1]
        at += len(piece)
        structure = rest + piece.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
        outside, n_texts = _TEXTS.subn(b"", structure)
        before, rest, _ = outside.partition(b'"')  # what is inside of the text that begins here does not matter
        values, brackets, _ = _counted(before)
        n_values, n_items = n_values + values, n_items + brackets + n_texts
    return n_values, n_items
