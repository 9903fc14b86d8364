"""Emit text that arrives in pieces without the white space around it."""

from __future__ import annotations

from .reader import SPACE, Emit


class TrimmedText:
    """Emit text without leading (unless `leading`) and trailing (unless `trailing`) white space."""

    def __init__(self, emit: Emit, *, leading: bool = False, trailing: bool = False) -> None:
        self._emit = emit
        self._begun, self._trailing = leading, trailing
        self._withheld = ""
        self.said = False

    def __call__(self, text: str) -> None:
        text = self._withheld + text
        if not self._begun:
            text = text.lstrip(SPACE)
        solid = text if self._trailing else text.rstrip(SPACE)
        self._withheld = text[len(solid) :]
        if solid:
            self._begun = self.said = True
            self._emit(solid)

    def flush(self, *, without: str = "") -> None:
        """Emit the withheld white space, except the suffix `without`."""
        if self._begun:
            self._emit(self._withheld.removesuffix(without))
        self._withheld = ""
