"""Keeps what was read from files until the files change: by path, size, time of change and inode.

For small results only: a cache has as many entries as files in use, up to its limit, and then drops the oldest use.
Safe to use from several threads.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")

MAX_FILES = 1 << 14


class FileVersion(NamedTuple):
    """A file as it is now. A file that is replaced or written has another version, even if its size is the same."""

    path: str
    size: int
    """Bytes."""
    mtime_ns: int
    inode: int

    @property
    def modified(self) -> float:
        """Seconds since 1970."""
        return self.mtime_ns / 1e9


def version_of(path: str | os.PathLike[str]) -> FileVersion:
    """Raise OSError."""
    stat = os.stat(path)
    return FileVersion(os.fspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


class FileCache(Generic[Result]):
    """Results of `read`, a function of a path. An error of `read` is raised and not kept."""

    def __init__(self, read: Callable[[Path], Result], *, max_files: int = MAX_FILES) -> None:
        self._read = read
        self._max_files = max_files
        self._results: OrderedDict[str, tuple[FileVersion, Result]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._results)

    def get(self, version: FileVersion) -> Result:
        """Return the result for a file; read it if this version was not read yet."""
        if (known := self.peek(version)) is not None:
            return known
        result = self._read(Path(version.path))
        with self._lock:
            self._results[version.path] = version, result
            self._results.move_to_end(version.path)
            while len(self._results) > self._max_files:
                self._results.popitem(last=False)
        return result

    def peek(self, version: FileVersion) -> Result | None:
        """Return the result for a file if it was read; else None. Reads nothing."""
        with self._lock:
            known = self._results.get(version.path)
            if known is None or known[0] != version:
                return None
            self._results.move_to_end(version.path)
            return known[1]
