"""Lists the models of a `--models-dir`: one for each GGUF file, and one for each sub-directory.

Called by `sources`. Uses only names and opens no file. Entries are sorted, so a directory gives the same models on
every system.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.hub.gguf_names import SUFFIX, shard
from msgspec import Struct

DRAFT_PREFIXES = ("mtp-", "dspark-", "dflash-")
"""`eagle3-` is not included: llama-server lists such a file as a model here."""


class LocalModel(Struct, frozen=True):
    name: str
    model: Path
    mmproj: Path | None = None
    draft: Path | None = None


def scan(directory: Path) -> list[LocalModel]:
    """Return the models sorted by name. If a directory and a file have the same name, the directory is used.

    Raise ConfigError.
    """
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
    """Yield the models of single files; of a sharded model only the first shard. (llama-server lists every shard.)"""
    for path in entries:
        if _is_gguf(path) and not _is_companion(path) and shard(path.name).index == 1:
            yield LocalModel(path.name.removesuffix(SUFFIX), path)


def _directory(directory: Path) -> LocalModel | None:
    """Return the directory's model, named after the directory; None if it contains no model."""
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
