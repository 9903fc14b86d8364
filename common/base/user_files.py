"""Reads files and checks directories that options name. A failure is one plain line, which names the option."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ConfigError

_DIRECTORY = "this is a directory, not a file"
_MISSING = "no such file"


def read_text_of(option: str, path: str) -> str:
    """Return the text of the file. `option`: the flag that names it. Raise ConfigError."""
    data = read_bytes_of(option, path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{option} {path}: line {line} is not UTF-8 text") from None


def read_bytes_of(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{option} {path}: {why_unreadable(error)}") from None


def directory_of(option: str, path: str) -> Path:
    """Return the path of a directory that exists. Raise ConfigError."""
    if not os.path.isdir(path):
        why = "no such directory" + (": this is a file" if os.path.exists(path) else "")
        raise ConfigError(f"{option} {path}: {why}")
    return Path(path)


def why_not_a_file(path: str | Path) -> str:
    """Return why a path does not lead to a file; "" if it does."""
    if os.path.isfile(path):
        return ""
    return _DIRECTORY if os.path.isdir(path) else _MISSING


def why_unreadable(error: Exception) -> str:
    """Return why a file could not be opened, without error numbers and without the path."""
    if isinstance(error, IsADirectoryError):
        return _DIRECTORY
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return _MISSING
    if isinstance(error, PermissionError):
        return "no permission to open it"
    return getattr(error, "strerror", None) or str(error)
