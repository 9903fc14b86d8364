"""Reads files and checks directories that options name. A failure is one plain line, which names the option.

A path may lead to something else after a while, so by default only regular files of a limited size are read: a pipe or
a device would block the reader or never end. Only a program that is starting may wait for a pipe, such as `<(command)`.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import ConfigError

_DIRECTORY = "this is a directory, not a file"
_MISSING = "no such file"
_NOT_REGULAR = "this is not a regular file"
MAX_BYTES = 8 << 20
"""Largest file of presets, keys, templates or settings; thousands of models have less than 1 MB."""
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_CLOSE = getattr(os, "O_CLOEXEC", 0)


def read_text_of(option: str, path: str, *, may_wait: bool = False) -> str:
    """Return the text of the file. `option`: the flag that names it; `may_wait`: pipes are read, too.

    Raise ConfigError.
    """
    data = read_bytes_of(option, path, may_wait=may_wait)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{option} {path}: line {line} is not UTF-8 text") from None


def read_bytes_of(option: str, path: str, *, may_wait: bool = False) -> bytes:
    try:
        return read_limited(path, may_wait=may_wait)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{option} {path}: {why_unreadable(error)}") from None


def read_limited(path: str | Path, *, limit: int = MAX_BYTES, may_wait: bool = False) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes. `may_wait`: pipes and devices are read, too.

    Raise OSError, and ValueError for a path that cannot exist.
    """
    with open(path, "rb") if may_wait else open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"this file has more than {limit >> 20} MiB")
    return data


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; never wait for a pipe or a device. Raise OSError."""
    _check_regular(os.stat(path), path)  # to open some devices has effects
    descriptor = os.open(path, os.O_RDONLY | _CLOSE | _NO_WAIT)
    try:
        _check_regular(os.fstat(descriptor), path)  # it may have been replaced since
        return open(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def _check_regular(found: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, _NOT_REGULAR, str(path))


def directory_of(option: str, path: str) -> Path:
    """Return the path of a directory that exists. Raise ConfigError."""
    if not os.path.isdir(path):
        why = "no such directory" + (": this is a file" if os.path.exists(path) else "")
        raise ConfigError(f"{option} {path}: {why}")
    return Path(path)


def is_utf8(name: str) -> bool:
    """Return False for the name of a file that contains other bytes: JSON and logs cannot show it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """Return a path for a message, with its bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


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
