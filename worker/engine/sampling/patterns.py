"""Compiles regular expressions of clients so that a search takes linear time: the engine thread serves all requests.

RE2 is imported only when a request contains such an expression. It rejects look-around and back-references, which
cannot be searched for in linear time.
"""

from __future__ import annotations

from typing import Protocol


class Match(Protocol):
    @property
    def lastindex(self) -> int | None: ...

    def start(self, group: int = 0, /) -> int: ...

    def end(self, group: int = 0, /) -> int: ...


class Pattern(Protocol):
    def search(self, text: bytes, pos: int = 0, /) -> Match | None: ...

    def fullmatch(self, text: bytes, pos: int = 0, /) -> Match | None: ...


def compiled(text: str) -> Pattern:
    """Compile a regular expression. Raises ValueError if it is invalid or cannot be searched for in linear time."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        pattern: Pattern = re2.compile(text.encode("utf-8", "replace"), options)
    except re2.error as error:
        why = error.args[0] if error.args else error
        raise ValueError(why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)) from None
    return pattern
