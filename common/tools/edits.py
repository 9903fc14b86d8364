"""Replaces texts in a file, tolerant of trailing white space and typographic characters. Pure; used by `file_tools`.

Each edit is matched against the original text, must match exactly once, and must not overlap another edit. Lines that
no edit touches are kept byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from .errors import ToolFailed

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛", "'"),
        **dict.fromkeys("“”„‟", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    }
)
"""Characters that models often type differently from the file."""
_LINES = re.compile(r"[^\n]*\n|[^\n]+")


class Edit(Struct, frozen=True):
    old: str
    new: str


class _EditPosition(Struct, frozen=True):
    number: int
    """Index of the edit, from 0."""
    start: int
    end: int
    new: str


def apply_edits(text: str, edits: Sequence[Edit], path: str) -> str:
    """Return the edited text.

    Raise ToolFailed, naming the edit and `path`, if an edit does not match exactly once or nothing would change.
    """
    plain = _plain(text)
    is_exact = all(edit.old in text for edit in edits)
    base = text if is_exact else plain
    places = sorted(
        (_place(number, edit, base, plain, is_exact, path) for number, edit in enumerate(edits)),
        key=lambda place: place.start,
    )
    for before, after in pairwise(places):
        if before.end > after.start:
            raise ToolFailed(
                f"edits[{before.number}] and edits[{after.number}] overlap in {path}: combine or separate them"
            )
    edited = _replaced(base, 0, places) if is_exact else _replaced_by_lines(text, base, places)
    if edited == text:
        raise ToolFailed("nothing would change: the file already contains the new texts")
    return edited


def _plain(text: str) -> str:
    """Return the text without trailing white space and with plain characters; the number of lines is the same."""
    return "\n".join(line.rstrip(" \t\r") for line in text.split("\n")).translate(_SIGNS)


def _place(number: int, edit: Edit, base: str, plain: str, is_exact: bool, path: str) -> _EditPosition:
    old = edit.old if is_exact else _plain(edit.old)
    start = base.find(old) if old else -1
    if start == -1:
        raise ToolFailed(f"edits[{number}].old_text is not in {path}: it must match the file's current content")
    count = plain.count(_plain(edit.old)) if _plain(edit.old) else base.count(old)
    if count > 1:
        raise ToolFailed(f"edits[{number}].old_text occurs {count} times in {path}: it must be unique")
    return _EditPosition(number, start, start + len(old), edit.new)


def _replaced(text: str, offset: int, places: Sequence[_EditPosition]) -> str:
    """Apply the edits to a part of the file. `offset`: the part's start in the file, to which the places refer."""
    pieces, done = [], 0
    for place in places:
        pieces += [text[done : place.start - offset], place.new]
        done = place.end - offset
    return "".join(pieces) + text[done:]


def _replaced_by_lines(text: str, base: str, places: Sequence[_EditPosition]) -> str:
    """Apply the edits; untouched lines come from the original text, the others from its plain form."""
    lines, base_lines = _LINES.findall(text), _LINES.findall(base)
    pieces, waiting, start = [], list(places), 0
    number = 0
    while number < len(base_lines):
        first, touched = number, []
        end = start + len(base_lines[number])
        while waiting and waiting[0].start < end:
            touched.append(waiting.pop(0))
            while end < touched[-1].end:
                number += 1
                end += len(base_lines[number])
        number += 1
        pieces.append(_replaced(base[start:end], start, touched) if touched else "".join(lines[first:number]))
        start = end
    pieces += lines[len(base_lines) :]  # a last line with only spaces is empty in the plain form
    return "".join(pieces)
