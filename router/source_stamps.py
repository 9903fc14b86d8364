"""Finds out whether a model source has changed, from the metadata of the paths that the sources consist of.

`watcher` makes a survey before the sources are read, and compares with it later. A survey lists folders; the comparison
only asks the system for the metadata of the survey's paths. Neither opens a file. All metadata is that of the end of a
chain of links, so a switched link is noticed wherever it is in a path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from llama_corral.common.hub.gguf_names import is_gguf
from llama_corral.common.hub.hub_cache import BLOBS, FOLDER_PREFIX, REFS
from llama_corral.common.hub.resolve import cache_dir
from llama_corral.presets.models_dir import MAX_FOLDERS
from llama_corral.presets.models_dir_rules import MAX_DEPTH
from msgspec import Struct

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings

REPOSITORY_DEPTH = 3
"""Levels below a cached repository: `snapshots/COMMIT/FOLDER`."""

Stamp = tuple[object, ...]
ReadMetadata = Callable[[str], Stamp]
"""Returns metadata of a path; empty if there is no such file."""


class SourcePlaces(Struct, frozen=True):
    files: tuple[str, ...]
    """Absolute paths of single files: the presets file, and the file with the API keys."""
    folders: tuple[str, ...]
    """Absolute paths of directories with models: the models directory and the cache."""


class Survey(Struct, frozen=True):
    stamps: Mapping[tuple[ReadMetadata, str], Stamp]
    folders: frozenset[str]
    """The folders to watch that exist."""
    cut_off: frozenset[str] = frozenset()
    """The directories with more than MAX_FOLDERS folders."""

    @property
    def is_outdated(self) -> bool:
        """True if a path has changed since. Lists no folder."""
        return any(read(path) != stamp for (read, path), stamp in self.stamps.items())


def source_places(settings: Settings, environ: Mapping[str, str]) -> SourcePlaces:
    files = (settings.router.models_preset, settings.http.api_key_file)
    folders = (settings.router.models_dir, str(cache_dir(environ)))
    return SourcePlaces(_absolute(files), _absolute(folders))


def survey(places: SourcePlaces) -> Survey:
    """Look at all sources. A path that cannot be read has an empty stamp, and no error is raised."""
    stamps: dict[tuple[ReadMetadata, str], Stamp] = {}
    folders: set[str] = set()
    for path in places.files:
        stamps[resolved, path] = resolved(path)
        parents = {os.path.dirname(path), os.path.dirname(os.path.realpath(path))}  # editors replace the file itself
        folders |= {folder for folder in parents if os.path.isdir(folder)}
    cut_off = frozenset(root for root in places.folders if not _survey_folders(root, stamps, folders))
    return Survey(stamps, frozenset(folders), cut_off)


def _absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(os.path.abspath(path) for path in paths if path)


def _survey_folders(root: str, stamps: dict[tuple[ReadMetadata, str], Stamp], folders: set[str]) -> bool:
    """Add the stamps of a directory, of its folders, and of the links to models and the refs in them.

    Each folder's stamp is taken before it is listed, so that it changes if something is added to it meanwhile. Return
    False if there are too many folders.
    """
    seen: set[Stamp] = set()
    levels = [(root, MAX_DEPTH)]
    while levels:
        folder, depth = levels.pop()
        stamp = stamps[metadata, folder] = metadata(folder)
        if not stamp or stamp[:2] in seen:  # seen: a link to a folder above
            continue
        seen.add(stamp[:2])
        folders.add(folder)
        if len(seen) > MAX_FOLDERS:
            return False
        for entry in _entries(folder):
            if entry.name.startswith(".") or entry.name == BLOBS:
                continue
            if _is_folder(entry):
                below = REPOSITORY_DEPTH if entry.name.startswith(FOLDER_PREFIX) else depth - 1
                levels += [(entry.path, below)] if depth else []
            elif os.path.basename(folder) == REFS:
                stamps[metadata, entry.path] = metadata(entry.path)
            elif entry.is_symlink() and is_gguf(entry.name):  # its contents do not matter
                stamps[identity, entry.path] = identity(entry.path)
    return True


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


# -- what to look at -------------------------------------------------------------------------------------------------


def metadata(path: str) -> Stamp:
    """Return what changes when a file or folder is replaced, a file is written, or a folder's entries change."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def resolved(path: str) -> Stamp:
    """The same, and the path without links: `${here}` in a presets file stands for it."""
    return (os.path.realpath(path), *metadata(path))


def identity(path: str) -> Stamp:
    """Return which file it is."""
    return metadata(path)[:2]
