"""Warnings about the sources, which are read again and again: each is logged once, until a reading is without it."""

from __future__ import annotations

import logging
from collections.abc import Callable

Warn = Callable[[str], None]
"""Called with the text of a warning."""

logger = logging.getLogger("corral.presets")


def log_warning(text: str) -> None:
    """Log the warning, also if it was logged before."""
    logger.warning("%s", text)


class Notices:
    """The warnings of one reading after the other."""

    def __init__(self) -> None:
        self._before: frozenset[str] = frozenset()
        self._now: set[str] = set()

    def warn(self, text: str) -> None:
        if text not in self._before and text not in self._now:
            log_warning(text)
        self._now.add(text)

    def end_reading(self, *, is_complete: bool) -> None:
        """Forget the warnings that this reading did not repeat. An incomplete one may only not have reached them."""
        self._before = frozenset(self._now) if is_complete else self._before | self._now
        self._now = set()
