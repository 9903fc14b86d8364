"""Lists the models of a `--models-dir`: reads the names of its files, and lets `models_dir_rules` decide.

Called by `sources`. Opens no model file. Folders of a Hugging Face cache (`models--user--repository`) are read as such,
and their models have the names that they have in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.user_files import directory_of, is_utf8, printable
from llama_corral.common.hub import hub_cache
from llama_corral.common.hub.gguf_names import choose_files, is_gguf
from llama_corral.common.hub.resolve import listed_models
from msgspec import Struct

from .models_dir_rules import MAX_DEPTH, decide
from .notices import Warn, log_warning

MAX_FOLDERS = 10_000
"""Most folders that are listed: the directory may be given by mistake, such as `/`."""


class LocalModel(Struct, frozen=True):
    name: str
    model: Path
    mmproj: Path | None = None
    alias: str = ""
    """Another name, unless something else has it."""
    is_cached: bool = False
    """True if it is in a folder of a Hugging Face cache."""


def scan(directory: Path, warn: Warn = log_warning) -> list[LocalModel]:
    """Return the models, sorted by name. Raise ConfigError."""
    directory_of("--models-dir", str(directory))
    files: list[str] = []
    repositories: list[hub_cache.RepoSnapshot] = []
    for found in _walk(directory, warn):
        if isinstance(found, str):
            files.append(found)
        else:
            repositories.append(found)
    models = {model.name: model for repository in repositories for model in _cached_models(repository)}
    for model in decide(files):
        mmproj = directory / model.mmproj if model.mmproj else None
        models[model.name] = LocalModel(model.name, directory / model.model, mmproj, model.alias)
    return [models[name] for name in sorted(models)]


def _cached_models(repository: hub_cache.RepoSnapshot) -> Iterator[LocalModel]:
    for tag in listed_models(repository):
        chosen = choose_files(repository.files, tag)
        if chosen.model:
            mmproj = repository.files[chosen.mmproj] if chosen.mmproj else None
            name = f"{repository.repo}:{tag}"
            yield LocalModel(name, repository.files[chosen.model[0]], mmproj, is_cached=True)


class _Folder(Struct, frozen=True):
    path: Path
    prefix: str
    """Its path in the models directory with a `/` at the end; empty for the directory itself."""
    depth: int
    above: frozenset[tuple[int, int]]
    """Device and inode of the folders that it is in: a link to one of them is not followed."""


def _walk(directory: Path, warn: Warn) -> Iterator[str | hub_cache.RepoSnapshot]:
    """Yield the GGUF files as relative paths, and the repositories of a cache. Raise ConfigError."""
    waiting = [_Folder(directory, "", 0, frozenset())]
    for number, folder in enumerate(waiting):
        if number == MAX_FOLDERS:
            warn(f"--models-dir {directory}: only the first {MAX_FOLDERS} folders are read")
            return
        try:
            above = folder.above | {_identity(folder.path)}
            with os.scandir(folder.path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not folder.prefix:
                raise ConfigError(f"--models-dir {directory}: {error.strerror or error}") from None
            warn(f"--models-dir: {folder.path}: {error.strerror or error}")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not is_utf8(entry.name):
                warn(f"--models-dir: {printable(entry.path)}: ignored: its name is not UTF-8 text")
                continue
            if is_gguf(entry.name) and _is_file(entry):
                yield folder.prefix + entry.name
                continue
            if folder.depth == MAX_DEPTH or not _is_new_folder(entry, above):
                continue
            if repository := hub_cache.snapshot_in(Path(entry.path)):
                yield repository
            else:
                waiting.append(_Folder(Path(entry.path), f"{folder.prefix}{entry.name}/", folder.depth + 1, above))


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # for example a link to itself
        return False


def _is_new_folder(entry: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> bool:
    try:
        return entry.is_dir() and not (entry.is_symlink() and _identity(Path(entry.path)) in above)
    except OSError:
        return False
