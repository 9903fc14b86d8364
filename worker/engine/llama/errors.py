"""What goes wrong in the engine apart from a request."""

from __future__ import annotations


class LoadError(Exception):
    """The model cannot be loaded: one line that says why."""


class EncodeError(Exception):
    """The projector failed, and gave its reason to the log."""
