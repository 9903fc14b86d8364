"""`file://` URLs: files below `--media-path`, and nothing outside of it.

Worded as llama-server does. Beyond it, a link that leads out is not followed, and only regular files are read: a pipe
would hold the request for ever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llama_corral.common.base.errors import ConfigError, InvalidRequest
from llama_corral.common.web.safe_names import is_safe_path

SCHEME = "file://"


class MediaDirectory:
    """Raises ConfigError when it is none. Without a path no file may be named."""

    def __init__(self, path: str, max_bytes: int) -> None:
        if path and not Path(path).is_dir():
            raise ConfigError(f"--media-path: not a directory: {path}")
        self._root = Path(path).resolve() if path else None
        self._max_bytes = max_bytes

    def read(self, url: str) -> bytes:
        """Blocks: for another thread than the loop's."""
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
        except (OSError, RuntimeError):  # RuntimeError: links in a circle
            raise InvalidRequest(f"file does not exist or cannot be opened: {name}") from None

    def _read(self, path: Path, name: str) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("no regular file")
            if status.st_size > self._max_bytes:
                raise InvalidRequest(f"file is larger than --max-body allows ({self._max_bytes} bytes): {name}")
            return file.read(self._max_bytes)
