"""A directory that only this user reads and that ends with the program which made it: what a run keeps beside memory.

The router makes one and its workers share it, so that something survives a worker; a worker by itself makes its own.
It is locked while its maker lives; what a killed one left behind goes with the next start. Blocking.
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
"""A directory may be there for a moment before its lock is."""


class PrivateDirectory:
    def __init__(self, prefix: str, given: str = "", *, parent: str = "") -> None:
        """`given`: somebody else's; without, `open` makes one under `parent` that `close` removes."""
        self._prefix, self._path, self._parent = prefix, given, parent
        self.is_own = not given
        self._lock: IO[bytes] | None = None

    def open(self) -> str:
        """Its path. It is made if there is none yet. Raises OSError."""
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
    """The open file, which nobody else can lock as long as it is open; None: somebody has."""
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
                log.debug("removing %s*, which an earlier run left behind", prefix)
                shutil.rmtree(directory, ignore_errors=True)
                lock.close()
