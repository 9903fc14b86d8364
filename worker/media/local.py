"""Reads `file://` URLs: only files below `--media-path`.

The error messages are those of llama-server. Unlike there, links that lead out of the directory are refused, and only
regular files are read: reading a pipe could block the request forever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llama_corral.common.base.errors import ConfigError, InvalidRequest
from llama_corral.common.web.safe_names import is_safe_path

SCHEME = "file://"


class MediaDirectory:
    """The directory `--media-path`. Raises ConfigError if it is not a directory. An empty path allows no file."""

    def __init__(self, path: str, max_bytes: int) -> None:
        if path and not Path(path).is_dir():
            raise ConfigError(f"--media-path: not a directory: {path}")
        self._root = Path(path).resolve() if path else None
        self._max_bytes = max_bytes

    def read(self, url: str) -> bytes:
        """Return the file's bytes. Raises InvalidRequest. Blocks: do not call it on the event loop."""
        if self._root is None:
            raise InvalidRequest("file:// URLs are not allowed unless --media-path is specified")
        name = url[len(SCHEME) :]
        if not is_safe_path(name):
            raise InvalidRequest(f"file path is not allowed: {name}")
        try:
            path = (self._root / name.lstrip("/")).resolve(strict=True)
            if not path.is_relative_to(self._root):
                raise InvalidRequest(f"file path is not allowed: {name}")
            return self._read(path, name)
        except (OSError, RuntimeError):  # RuntimeError: a loop of symbolic links
            raise InvalidRequest(f"file does not exist or cannot be opened: {name}") from None

    def _read(self, path: Path, name: str) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            if status.st_size > self._max_bytes:
                raise InvalidRequest(f"file is larger than --max-body allows ({self._max_bytes} bytes): {name}")
            return file.read(self._max_bytes)
