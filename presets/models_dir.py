"""Which models a `--models-dir` holds: one for each GGUF file in it, and one for each sub-directory.

Called by sources. Looks at names only and opens no file. Entries are taken in sorted order, so that the same directory
gives the same models everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.hub.gguf_names import SUFFIX, shard

DRAFT_PREFIXES = ("mtp-", "dspark-", "dflash-")
"""`eagle3-` is not among them: llama-server takes such a file for a model here."""


@dataclass(frozen=True)
class LocalModel:
    name: str
    model: Path
    mmproj: Path | None = None
    draft: Path | None = None


def scan(directory: Path) -> list[LocalModel]:
    """Sorted by name. A directory and a file of one name: the directory counts, for it may bring companions."""
    if not directory.is_dir():
        raise ConfigError(f"--models-dir {directory}: no such directory")
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise ConfigError(f"--models-dir {directory}: {error.strerror or error}") from None
    found = {model.name: model for model in _single_files(entries)}
    for entry in entries:
        model = _directory(entry) if entry.is_dir() else None
        if model:
            found[model.name] = model
    return [found[name] for name in sorted(found)]


def _single_files(entries: list[Path]) -> Iterator[LocalModel]:
    """Of a sharded model only the first part: it is the one to load. (llama-server lists every part as a model.)"""
    for path in entries:
        if _is_gguf(path) and not _is_companion(path) and shard(path.name).index == 1:
            yield LocalModel(path.name.removesuffix(SUFFIX), path)


def _directory(directory: Path) -> LocalModel | None:
    """Named after the directory; None without a model in it."""
    try:
        files = [path for path in sorted(directory.iterdir()) if _is_gguf(path)]
    except OSError:
        return None
    models = [path for path in files if not _is_companion(path) and shard(path.name).index == 1]
    if not models:
        return None
    first_shards = [path for path in models if shard(path.name).count > 1]
    mmprojs = [path for path in files if "mmproj" in path.name]
    drafts = [path for path in files if path.name.startswith(DRAFT_PREFIXES) and "mmproj" not in path.name]
    return LocalModel(
        directory.name,
        (first_shards or models)[-1],
        mmprojs[-1] if mmprojs else None,
        drafts[0] if drafts else None,
    )


def _is_gguf(path: Path) -> bool:
    return path.name.endswith(SUFFIX) and path.is_file()


def _is_companion(path: Path) -> bool:
    return "mmproj" in path.name or path.name.startswith(DRAFT_PREFIXES)
