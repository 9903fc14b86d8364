"""What goes wrong with a tool: a failure the model is told of, or a runtime that is refused. Imports nothing."""

from __future__ import annotations


class ToolFailed(Exception):
    """The tool could not do it. An answer like any other, `{"error": …}`, since the model should read it and go on."""


class RuntimeRefused(Exception):
    """The runtime that was asked for cannot be, and nothing else is tried in its place."""
