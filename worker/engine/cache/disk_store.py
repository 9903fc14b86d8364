"""A directory of files that several workers share, limited in its total size. Does not know the files' contents.

A file is written under another name, locked, and then renamed, so that no partial file is ever visible. The least
recently used files of all workers are evicted first. All calls block.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from llama_corral.common.base.private_directory import PrivateDirectory, locked

log = logging.getLogger("corral.engine")

SUFFIX, PARTIAL = ".prompt", ".part"
FREE_SHARE = 0.05
"""Fraction of the disk that must stay free."""
_LOCK = "writing"


class StoredFile(NamedTuple):
    used: float
    n_bytes: int
    name: str


def victims(files: Iterable[StoredFile], n_new: int, used: float, max_bytes: int) -> list[StoredFile] | None:
    """Return the files to evict so that a new one of `n_new` bytes fits, the least recently used first.

    None: it does not fit, or a file would be evicted that was used more recently than the new one.
    """
    files = sorted(files)
    n_over = sum(file.n_bytes for file in files) + n_new - max_bytes
    chosen: list[StoredFile] = []
    for file in files:
        if n_over <= 0:
            break
        if file.used > used:
            return None
        chosen.append(file)
        n_over -= file.n_bytes
    return chosen if n_over <= 0 else None


class DiskStore:
    def __init__(self, directory: PrivateDirectory, max_bytes: int) -> None:
        self._directory, self.max_bytes = directory, max_bytes
        self.outlives = not directory.is_own
        """True if the files remain after this process, for other processes to read."""

    def names(self, beginning: str) -> list[Path]:
        """Return the files whose names begin with `beginning`. Raises OSError."""
        with os.scandir(self._directory.open()) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(beginning) and entry.name.endswith(SUFFIX) and _is_ours(entry)
            ]

    def put(self, name: str, n_bytes: int, used: float, fill: Callable[[IO[bytes]], bool]) -> bool:
        """Store a file; return False if it was not stored. Raises OSError.

        `fill` writes exactly `n_bytes` and returns True, or gives up and returns False.
        """
        directory = Path(self._directory.open())
        final = directory / (name + SUFFIX)
        partial = directory / f"{name}.{n_bytes}{PARTIAL}"
        with _exclusive_access(directory):
            if self._touch(final, used):
                return True
            if not self._make_room(directory, n_bytes, used):
                return False
            file = create_locked(partial)
        try:
            if not fill(file):
                return False
            with _exclusive_access(directory):  # without its lock another worker would take the file for abandoned
                file.close()
                os.utime(partial, (used, used))
                partial.replace(final)
            return True
        finally:
            file.close()
            partial.unlink(missing_ok=True)

    def has(self, name: str, used: float) -> bool:
        """Return True if the file exists, and set its time of last use. Raises OSError."""
        return self._touch(Path(self._directory.open(), name + SUFFIX), used)

    def touch(self, path: Path, used: float) -> None:
        with contextlib.suppress(OSError):
            self._touch(path, used)

    def drop(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    @staticmethod
    def _touch(path: Path, used: float) -> bool:
        try:
            os.utime(path, (used, used))
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, directory: Path, n_bytes: int, used: float) -> bool:
        n_coming, kept = 0, []
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if not _is_ours(entry):
                        continue
                    if entry.name.endswith(PARTIAL):
                        n_coming += _pending_size(Path(entry.path))
                    elif entry.name.endswith(SUFFIX):
                        facts = entry.stat(follow_symlinks=False)
                        kept.append(StoredFile(facts.st_mtime, facts.st_size, entry.name))
        chosen = victims(kept, n_bytes, used, self.max_bytes - n_coming)
        if chosen is None:
            return False
        disk = shutil.disk_usage(directory)
        if disk.free + sum(file.n_bytes for file in chosen) - n_bytes < disk.total * FREE_SHARE:
            log.warning("a prompt of %d MiB is not saved: the disk of %s is nearly full", n_bytes >> 20, directory)
            return False
        for file in chosen:
            self.drop(directory / file.name)
        return True


def create_locked(path: Path) -> IO[bytes]:
    """Create a file and lock it. Raises FileExistsError if another worker is writing the same file."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _pending_size(path: Path) -> int:
    """Return the final size of a partial file. If its writer no longer runs, delete it and return 0."""
    abandoned = locked(path) if os.name == "posix" else None
    if abandoned is not None:
        abandoned.close()
        path.unlink(missing_ok=True)
        return 0
    size = path.name.removesuffix(PARTIAL).rpartition(".")[2]
    return int(size) if size.isdigit() else 0


@contextlib.contextmanager
def _exclusive_access(directory: Path) -> Iterator[None]:
    """Lock the directory, so that two workers do not both count the same free space. Hold it only for a short time."""
    with (directory / _LOCK).open("ab") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_ours(entry: os.DirEntry[str]) -> bool:
    try:
        facts = entry.stat(follow_symlinks=False)
    except OSError:  # another worker has deleted it
        return False
    return entry.is_file(follow_symlinks=False) and (os.name != "posix" or facts.st_uid == os.getuid())
