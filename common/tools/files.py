"""File access for the tools: resolves, reads, writes and lists paths. This module implements it for this machine.

`isolate` implements it for containers and remote machines. It runs in the tool process, where a hanging call does not
affect others.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from typing import Literal, Protocol

from msgspec import Struct

from .errors import ToolFailed

Kind = Literal["file", "dir", "all"]

JUNK = frozenset(
    (
        *(".git", ".svn", ".hg", ".cache", ".idea", ".vscode", ".venv", "venv", "node_modules", "__pycache__"),
        *("dist", "build", "target"),
    )
)
"""Folders that are listed but not entered."""
LISTING_S = 15.0
"""Time limit of a listing, which then returns what it has found so far."""
MAX_LISTING = 8 << 20
"""Maximum bytes of all names in a listing."""
MAX_FILE_BYTES = 64 << 20
"""Maximum bytes of a file that is read as a whole."""
GIT_LIST = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
GIT_SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
"""Disables programs from the repository's own configuration: a tool that only reads must not start them."""


class DirectoryEntry(Struct, frozen=True):
    path: str
    """Relative to the listed folder, with `/`."""
    is_folder: bool = False

    @property
    def depth(self) -> int:
        return 1 + self.path.count("/")


class DirectoryListing(Struct, frozen=True):
    entries: tuple[DirectoryEntry, ...]
    is_complete: bool = True


class Files(Protocol):
    """File access of a runtime. All paths must come from `resolve`; errors raise ToolFailed, which names `shown`."""

    def resolve(self, path: str) -> str: ...

    def is_folder(self, path: str) -> bool: ...

    def is_file(self, path: str) -> bool: ...

    def size(self, path: str, shown: str) -> int: ...

    def read(self, path: str, shown: str) -> bytes: ...

    def write(self, path: str, content: bytes, shown: str) -> None: ...

    def list(self, folder: str, kind: Kind, max_depth: int, shown: str) -> DirectoryListing: ...


class LocalFiles:
    """The files of this machine; if `root` is set, only those below it."""

    def __init__(self, cwd: str = "", root: str = "") -> None:
        self._root = os.path.realpath(root) if root else ""
        self._cwd = self._root or os.getcwd()
        if cwd:
            self._cwd = self.resolve(cwd)

    def resolve(self, path: str) -> str:
        if "\0" in path:
            raise ToolFailed("a path must not contain a NUL character")
        if path == "~" or path.startswith("~/"):
            path = os.path.expanduser("~") + path[1:]
        try:
            full = os.path.normpath(os.path.join(self._cwd, path))
            os.fsencode(full)
            return self._check_inside_root(os.path.realpath(full), path) if self._root else full
        except (ValueError, OSError) as error:
            raise ToolFailed(f"not a usable path: {path!r}: {error}") from None

    def _check_inside_root(self, real: str, path: str) -> str:
        """Raise ToolFailed if `real`, a path with all links resolved, is outside of the root."""
        if os.path.commonpath((self._root, real)) != self._root:
            raise ToolFailed(f"{path} is outside of {self._root}: these tools cannot use it")
        return real

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def size(self, path: str, shown: str) -> int:
        try:
            found = os.stat(path)
        except OSError as error:
            raise ToolFailed(f"cannot stat file: {shown} ({error.strerror})") from None
        if not stat.S_ISREG(found.st_mode):
            raise ToolFailed(f"not a regular file: {shown}")
        return found.st_size

    def read(self, path: str, shown: str) -> bytes:
        try:
            with open(self._open(path, os.O_RDONLY), "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ToolFailed(f"failed to open file: {shown} ({error.strerror})") from None
        if len(content) > MAX_FILE_BYTES:
            raise ToolFailed(f"file too large: {shown} (max {MAX_FILE_BYTES} bytes)")
        return content

    def write(self, path: str, content: bytes, shown: str) -> None:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(self._open(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
                file.truncate(0)
                file.write(content)
        except OSError as error:
            raise ToolFailed(f"failed to write file: {shown} ({error.strerror})") from None

    def _open(self, path: str, flags: int) -> int:
        """Open a regular file without waiting (as a pipe could); with a root, refuse links created after `resolve`."""
        flags |= os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if self._root else 0)
        descriptor = os.open(path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(0, "not a regular file")
        return descriptor

    def list(self, folder: str, kind: Kind, max_depth: int, shown: str) -> DirectoryListing:
        if not self.is_folder(folder):
            raise ToolFailed(f"path does not exist or is not a directory: {shown}")
        deadline = time.monotonic() + LISTING_S
        names = _git_files(folder) if kind == "file" else None
        if names is None:
            return _walk(folder, kind, max_depth, deadline)
        entries = (DirectoryEntry(name) for name in names if self._is_shown(os.path.join(folder, name)))
        return DirectoryListing(tuple(entry for entry in entries if not max_depth or entry.depth <= max_depth))

    def _is_shown(self, path: str) -> bool:
        if self._root and os.path.commonpath((self._root, os.path.realpath(path))) != self._root:
            return False
        return os.path.isfile(path)


def _git_files(folder: str) -> list[str] | None:
    """Return the tracked and untracked files that git does not ignore; None: no repository, or no git."""
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        found = subprocess.run(
            ["git", *GIT_SAFE, "-C", folder, *GIT_LIST],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=LISTING_S,
            env={**os.environ, **quiet},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if found.returncode != 0:
        return None
    names = found.stdout[:MAX_LISTING].split(b"\0")[:-1]
    return list(dict.fromkeys(os.fsdecode(name) for name in names))


def _walk(folder: str, kind: Kind, max_depth: int, deadline: float) -> DirectoryListing:
    entries: list[DirectoryEntry] = []
    is_complete, length = True, 0
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            found = sorted(_scan(folder, below), key=lambda entry: entry.path)
        except OSError:  # no permission, or deleted meanwhile
            is_complete = False
            continue
        for entry in found:
            if kind in ("all", "dir" if entry.is_folder else "file"):
                entries.append(entry)
                length += len(entry.path)
        if time.monotonic() > deadline or length > MAX_LISTING:
            return DirectoryListing(tuple(entries), is_complete=False)
        deeper = [entry.path for entry in found if entry.is_folder and _may_enter(folder, entry, max_depth)]
        waiting += reversed(deeper)
    return DirectoryListing(tuple(entries), is_complete)


def _scan(folder: str, below: str) -> Iterator[DirectoryEntry]:
    with os.scandir(os.path.join(folder, below)) as found:
        for item in found:
            path = f"{below}/{item.name}" if below else item.name
            with contextlib.suppress(OSError):
                if item.is_dir():
                    yield DirectoryEntry(path, is_folder=True)
                elif item.is_file():
                    yield DirectoryEntry(path)


def _may_enter(folder: str, entry: DirectoryEntry, max_depth: int) -> bool:
    """Return True if a folder may be entered. Links are not followed, since they may form a loop."""
    if max_depth and entry.depth >= max_depth:
        return False
    return os.path.basename(entry.path) not in JUNK and not os.path.islink(os.path.join(folder, entry.path))
