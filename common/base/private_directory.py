"""A temporary directory that only this user can read and that is deleted when the program that created it ends.

The router creates some and shares them with its workers, so that files survive a worker; a worker without a router
creates its own. The directory is locked while its creator runs. The next start deletes the directories that killed
processes left behind. All calls block.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

log = logging.getLogger("corral.http")

_UNFINISHED = ".new-"
"""Prefix of a directory that is not locked yet. It gets its name when it is; one without lock is abandoned."""
_YOUNG_S = 60.0
"""Younger directories with that prefix are not deleted."""


class PrivateDirectory:
    def __init__(self, prefix: str, given: str = "", *, parent: str = "") -> None:
        """Use the directory `given`, which is never deleted. If it is "", `open` creates one and `close` deletes it.

        The new one is under `parent`, by default the system's directory for temporary files.
        """
        self._prefix, self._path, self._parent = prefix, given, parent
        self.is_own = not given
        self._opening = threading.Lock()
        self._lock = -1
        """Descriptor of the locked directory."""

    def open(self) -> str:
        """Return the path; create the directory if it is not there. Raise OSError.

        One that was deleted is created again with the same name, since workers know it.
        """
        with self._opening:
            if self.is_own and not self._path:
                parent = self._parent or tempfile.gettempdir()
                _remove_abandoned(Path(parent), self._prefix)
                self._create(parent)
            elif self.is_own and not os.path.isdir(self._path):
                log.warning("directory %s was deleted: creating it again", self._path)
                self._unlock()
                self._create(os.path.dirname(self._path))
            return self._path

    def close(self) -> None:
        if self.is_own and self._path:
            shutil.rmtree(self._path, ignore_errors=True)
            self._unlock()
            self._path = ""

    def _create(self, parent: str) -> None:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        unfinished = tempfile.mkdtemp(prefix=_UNFINISHED + self._prefix, dir=parent)
        self._lock = _lock_of(unfinished)
        path = self._path or os.path.join(parent, os.path.basename(unfinished)[len(_UNFINISHED) :])
        os.rename(unfinished, path)
        self._path = path

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


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


def _lock_of(directory: str | Path) -> int:
    """Lock the directory and return a descriptor that holds the lock; -1 if it is locked or cannot be locked."""
    try:
        import fcntl

        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (ImportError, AttributeError, OSError):  # the first two: Windows
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _remove_abandoned(parent: Path, prefix: str) -> None:
    if os.name != "posix":
        return
    for directory in (*parent.glob(prefix + "*"), *parent.glob(_UNFINISHED + prefix + "*")):
        with contextlib.suppress(OSError):
            facts = directory.lstat()
            if facts.st_uid != os.getuid() or not stat.S_ISDIR(facts.st_mode):
                continue
            if directory.name.startswith(_UNFINISHED) and time.time() - facts.st_mtime < _YOUNG_S:
                continue
            if (lock := _lock_of(directory)) >= 0:
                log.debug("deleting directory %s*, left behind by an earlier run", prefix)
                shutil.rmtree(directory, ignore_errors=True)
                os.close(lock)
