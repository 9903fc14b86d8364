"""Reads and writes files of n-gram counts in the format of llama.cpp's lookup tools. Pure except for the file access.

The format is, for each n-gram: four token ids (-1 fills shorter ones), the number of different tokens that followed it,
and for each of these its id and count; all 32-bit integers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from llama_corral.common.base.user_files import read_limited, why_unreadable

from ...llama.errors import LoadError

Counts = dict[int, int]
Table = dict[tuple[int, ...], Counts]

WIDTH = 4
MAX_BYTES = 1 << 30
_NO_TOKEN = -1


def load(path: Path) -> Table:
    """Read a table. Raises LoadError if the file cannot be read or is invalid."""
    try:
        data = read_limited(path, limit=MAX_BYTES)
    except OSError as error:
        raise LoadError(f"failed to read lookup cache '{path}': {why_unreadable(error)}") from None
    table: Table = {}
    words = np.frombuffer(data[: len(data) & ~3], np.int32).tolist()
    at = 0
    while at < len(words):
        end = at + WIDTH + 1
        n = words[end - 1] if end <= len(words) else 0
        pairs = words[end : end + 2 * n]
        counts = dict(zip(pairs[::2], pairs[1::2], strict=False))
        if n <= 0 or len(pairs) < 2 * n or min(counts.values()) <= 0:
            raise LoadError(f"failed to read lookup cache '{path}': invalid entry at byte {4 * at}")
        table[tuple(token for token in words[at : at + WIDTH] if token != _NO_TOKEN)] = counts
        at = end + 2 * n
    if len(data) % 4:
        raise LoadError(f"failed to read lookup cache '{path}': it is truncated in the middle of a number")
    return table


def save(table: Table, path: Path) -> None:
    """Write the table to a temporary file, then replace `path` by it. Raises OSError."""
    words: list[int] = []
    for ngram, counts in table.items():
        words += (*ngram, *[_NO_TOKEN] * (WIDTH - len(ngram)), len(counts))
        for pair in counts.items():
            words += pair
    partial = path.with_name(f".saving-{os.getpid()}-{path.name}")
    try:
        partial.write_bytes(np.array(words, np.int32).tobytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def merge(into: Table, table: Table) -> None:
    """Add the counts of `table` to `into`."""
    for ngram, counts in table.items():
        known = into.setdefault(ngram, {})
        for token, count in counts.items():
            known[token] = known.get(token, 0) + count
