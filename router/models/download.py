"""The record of one download into the cache, and of the worker that does only this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import Struct

from .model import Model
from .queue import Command

ReadSources = Callable[[], Awaitable[None]]
"""Reads the sources again and applies them. Raises ApiError."""


class Download(Struct, eq=False):
    model: Model
    """The entry of the catalog while it downloads."""
    read_sources: ReadSources
    """For after the download, so that the cache's entry exists before the end is published."""
    asker: Command
    """The command that started it."""
    is_waiting: bool = False
    """True if it has no process yet, because others download."""
    is_answered: bool = False
    """True if `asker` was answered when it began to wait, so that its start is neither answered nor published."""
    failure: str = ""
    is_cancelled: bool = False
    is_gone: bool = False
    """True when its end was published."""

    def __repr__(self) -> str:
        what = [what for what in ("cancelled", "waiting") if getattr(self, f"is_{what}")]
        return f"<Download {' '.join([self.model.name, *what])}>"
