"""Errors of tools: failures that are reported to the model, and refused runtimes. Imports nothing."""

from __future__ import annotations


class ToolFailed(Exception):
    """The tool failed. It becomes a normal answer, `{"error": …}`, because the model should read it and continue."""


class RuntimeRefused(Exception):
    """The requested runtime is invalid or not allowed. The call does not fall back to another one."""
