"""A temporary directory that only this user can read and that is deleted when the program that created it ends.

The router creates one and shares it with its workers, so that files survive a worker; a worker without a router creates
its own. The directory is locked while its creator runs. The next start deletes directories that killed processes left
behind. All calls block.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

log = logging.getLogger("corral.http")

LOCK = "lock"
_YOUNG_S = 60.0
"""Younger directories are never deleted: a directory exists for a moment before its lock file does."""


class PrivateDirectory:
    def __init__(self, prefix: str, given: str = "", *, parent: str = "") -> None:
        """Use the directory `given`, which is never deleted. If it is "", `open` creates one and `close` deletes it.

        The new one is under `parent`, by default the system's directory for temporary files.
        """
        self._prefix, self._path, self._parent = prefix, given, parent
        self.is_own = not given
        self._lock: IO[bytes] | None = None

    def open(self) -> str:
        """Return the path; create the directory if there is none yet. Raise OSError."""
        if not self._path:
            parent = self._parent or tempfile.gettempdir()
            _remove_abandoned(Path(parent), self._prefix)
            self._path = tempfile.mkdtemp(prefix=self._prefix, dir=parent)
            self._lock = locked(Path(self._path, LOCK))
        return self._path

    def close(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._lock.close()
            self._lock, self._path = None, ""


def locked(path: Path) -> IO[bytes] | None:
    """Open and lock the file; the lock lasts until the file is closed. Return None if it is locked already."""
    file = path.open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except OSError:
        file.close()
        return None
    return file


def _remove_abandoned(parent: Path, prefix: str) -> None:
    if os.name != "posix":
        return
    for directory in parent.glob(prefix + "*"):
        with contextlib.suppress(OSError):
            facts = directory.stat()
            if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < _YOUNG_S:
                continue
            if (lock := locked(directory / LOCK)) is not None:
                log.debug("deleting directory %s*, left behind by an earlier run", prefix)
                shutil.rmtree(directory, ignore_errors=True)
                lock.close()
