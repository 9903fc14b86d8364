"""Changes files as editors, `ln`, `mv` and other programs do."""

from __future__ import annotations

import os
from pathlib import Path


def gguf_files(folder: Path, *names: str) -> Path:
    """Write files that are no complete models. Return the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"GGUF")
    return folder


def put(path: Path, text: str = "") -> Path:
    """Write a file as editors do: under another name, which is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("unfinished")
    temporary.write_text(text)
    return temporary.replace(path)


def link(path: Path, target: Path | str) -> None:
    """Create or switch a link, as `ln -s` and `mv -T` do."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.symlink_to(target)
    temporary.replace(path)


def overwrite(path: Path, data: bytes | None = None) -> None:
    """Write `data`, by default zeros, over the whole file of the same size and keep its modification time.

    No program can see this in the size and the modification time.
    """
    before = path.stat()
    data = bytes(before.st_size) if data is None else data
    assert len(data) == before.st_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touch(path: Path) -> None:
    """Change a file's modification time by a nanosecond."""
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
