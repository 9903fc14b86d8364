"""Errors of the engine that are not errors of a request."""

from __future__ import annotations


class LoadError(Exception):
    """The model cannot be loaded. The message is one line with the reason."""


class EncodeError(Exception):
    """The projector failed to encode an image or audio. The reason is in the log."""
