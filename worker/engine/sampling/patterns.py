"""Regular expressions of clients, searched in time that grows with the text alone: the engine thread serves everybody.

RE2 is imported only when a request brings such an expression. It knows neither look-around nor references back, which
cannot be searched for like this: they are refused.
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
    """Raises ValueError for what is none, or cannot be searched for in linear time."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        pattern: Pattern = re2.compile(text.encode("utf-8", "replace"), options)
    except re2.error as error:
        why = error.args[0] if error.args else error
        raise ValueError(why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)) from None
    return pattern
