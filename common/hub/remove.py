"""Removes a model from the cache: its files, and files of the repository that no other model needs.

Called by the router for `DELETE /models`, when no worker uses these files any more. Blocking.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import hub_cache
from .gguf_names import NOT_A_MODEL, canonical_tag, is_gguf, listed_tag, shard, split_repo

log = logging.getLogger("corral.presets")


def remove_cached(environ: Mapping[str, str], name: str, *, keep_unfinished: bool = False) -> None:
    """Remove `user/repo:TAG`, or without a tag the whole repository.

    `keep_unfinished`: other files of the repository are being downloaded.
    """
    repo, tag = split_repo(name)
    cache = hub_cache.cache_dir(environ)
    folder = hub_cache.repo_dir(cache, repo)
    if not hub_cache.is_repo_name(repo) or not folder.is_dir():
        return
    snapshots = folder / hub_cache.SNAPSHOTS
    for path in _files(snapshots):
        if not tag or _is_of(path.name, canonical_tag(tag)):
            path.unlink(missing_ok=True)
    if not keep_unfinished and not any(_lists(path, snapshots) for path in _files(snapshots)):
        shutil.rmtree(folder, ignore_errors=True)  # projectors and drafts are useless without a model
        shutil.rmtree(cache / ".locks" / folder.name, ignore_errors=True)
        log.info("removed %s from the cache", repo)
        return
    _remove_unused(folder, keep_unfinished)
    log.info("removed %s from the cache", name)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file())


def _is_of(name: str, tag: str) -> bool:
    """Return True for a shard of the model with this tag; False for projectors, drafts and other files."""
    is_model = is_gguf(name) and not any(word in name for word in NOT_A_MODEL)
    return is_model and shard(name).tag == tag


def _lists(path: Path, snapshots: Path) -> bool:
    return listed_tag(path.relative_to(snapshots).as_posix()) is not None


def _remove_unused(folder: Path, keep_unfinished: bool) -> None:
    """Delete blobs that no snapshot links to, and empty folders."""
    used = {path.resolve() for path in _files(folder / hub_cache.SNAPSHOTS)}
    for blob in sorted((folder / hub_cache.BLOBS).glob("*")):
        is_finished = hub_cache.is_object_id(blob.name)
        if blob.resolve() not in used and (is_finished or not keep_unfinished):
            blob.unlink(missing_ok=True)
    for directory in sorted((folder / hub_cache.SNAPSHOTS).rglob("*"), reverse=True):
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
