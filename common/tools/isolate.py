"""File access in a container or on a remote machine, by small commands of a POSIX shell there.

Runs in the tool process. Input of the model is passed as arguments or on stdin, never as part of a script.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from .errors import ToolFailed
from .files import (
    GIT_LIST,
    GIT_SAFE,
    JUNK,
    LISTING_S,
    MAX_FILE_BYTES,
    MAX_LISTING,
    DirectoryEntry,
    DirectoryListing,
    Kind,
)
from .runtimes import Isolate

COMMAND_S = LISTING_S
"""Time limit of one command."""


class IsolateFiles:
    """Implements `files.Files`."""

    def __init__(self, isolate: Isolate, cwd: str = "") -> None:
        self._isolate = isolate
        self._cwd = cwd

    def resolve(self, path: str) -> str:
        if "\0" in path:
            raise ToolFailed("a path must not contain a NUL character")
        return path if path.startswith("/") or not self._cwd else f"{self._cwd}/{path}"

    def is_folder(self, path: str) -> bool:
        return self._run('[ -d "$1" ]', path).returncode == 0

    def is_file(self, path: str) -> bool:
        return self._run('[ -f "$1" ]', path).returncode == 0

    def size(self, path: str, shown: str) -> int:
        counted = self._run('[ -f "$1" ] && wc -c < "$1"', path)
        text = counted.stdout.strip()
        if counted.returncode != 0 or not text.isdigit():
            raise ToolFailed(f"cannot stat file: {shown}{_reason(counted)}")
        return int(text)

    def read(self, path: str, shown: str) -> bytes:
        read = self._run(f'[ -f "$1" ] && head -c {MAX_FILE_BYTES + 1} < "$1"', path)
        if read.returncode != 0:
            raise ToolFailed(f"failed to open file: {shown}{_reason(read)}")
        if len(read.stdout) > MAX_FILE_BYTES:
            raise ToolFailed(f"file too large: {shown} (max {MAX_FILE_BYTES} bytes)")
        return read.stdout

    def write(self, path: str, content: bytes, shown: str) -> None:
        written = self._run('mkdir -p -- "$(dirname -- "$1")" && cat > "$1"', path, content=content)
        if written.returncode != 0:
            raise ToolFailed(f"failed to write file: {shown}{_reason(written)}")

    def list(self, folder: str, kind: Kind, max_depth: int, shown: str) -> DirectoryListing:
        if not self.is_folder(folder):
            raise ToolFailed(f"path does not exist or is not a directory: {shown}")
        if kind == "file":
            git = " ".join(("git", *GIT_SAFE, *GIT_LIST))
            inside = "git rev-parse --is-inside-work-tree >/dev/null 2>&1"
            known = self._run(f'cd -- "$1" && {inside} && {git} | head -c {MAX_LISTING}', folder)
            if known.returncode == 0:
                entries = (DirectoryEntry(name) for name in _names(known.stdout))
                return DirectoryListing(tuple(entry for entry in entries if not max_depth or entry.depth <= max_depth))
        folders = self._find(folder, "d", max_depth) if kind != "file" else ()
        files = self._find(folder, "f", max_depth) if kind != "dir" else ()
        return DirectoryListing(
            (*(DirectoryEntry(name, is_folder=True) for name in folders), *(DirectoryEntry(name) for name in files))
        )

    def _find(self, folder: str, letter: str, max_depth: int) -> tuple[str, ...]:
        """Return the paths of files or folders; folders in JUNK are listed, but not entered."""
        depth = f"-maxdepth {max_depth}" if max_depth else ""
        junk = " -o ".join(f"-name {name}" for name in sorted(JUNK))
        shown = "-print0" if letter == "d" else ""
        script = (
            f'cd -- "$1" && find . -mindepth 1 {depth} -type d \\( {junk} \\) -prune {shown} '
            f"-o -type {letter} -print0 | head -c {MAX_LISTING}"
        )
        return tuple(name.removeprefix("./") for name in _names(self._run(script, folder).stdout))

    def _run(self, script: str, path: str, content: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        inner: Sequence[str] = ("sh", "-c", script, "sh", path)
        command = self._isolate.command(inner, with_input=content is not None)
        try:
            return subprocess.run(command, input=content or b"", capture_output=True, timeout=COMMAND_S, check=False)
        except FileNotFoundError:
            raise ToolFailed(f"{command[0]} is not installed") from None
        except (OSError, ValueError) as error:
            raise ToolFailed(f"cannot run {command[0]}: {error}") from None
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"{command[0]} did not answer within {COMMAND_S:.0f} s") from None


def _names(output: bytes) -> list[str]:
    """Split NUL-terminated names. The last piece is dropped, since it may be incomplete."""
    return list(dict.fromkeys(name.decode("utf-8", "replace") for name in output.split(b"\0")[:-1]))


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    said = done.stderr.decode("utf-8", "replace").strip()
    return f" ({said.splitlines()[-1]})" if said else ""
