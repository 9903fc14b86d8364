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
    failure: str = ""
    is_cancelled: bool = False
    is_gone: bool = False
    """True when its end was published."""

    def __repr__(self) -> str:
        return f"<Download {self.model.name}{' cancelled' if self.is_cancelled else ''}>"
