"""The model cache on disk, in the layout that llama-server and huggingface_hub share; reads and links, never downloads.

    models--<user>--<repo>/refs/<branch>            a commit
                           /snapshots/<commit>/…     links to blobs, with the repository's paths
                           /blobs/<object id>

Called by `resolve` and `client`. Only this module reads the environment variables that set the cache's location.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from msgspec import Struct

from ..base.user_files import read_limited

CACHE_VARIABLES = (
    ("LLAMA_CACHE", ""),
    ("HF_HUB_CACHE", ""),
    ("HUGGINGFACE_HUB_CACHE", ""),
    ("HF_HOME", "hub"),
    ("XDG_CACHE_HOME", "huggingface/hub"),
    ("HOME", ".cache/huggingface/hub"),
)
"""Variables and the cache's subfolder in each; the first one that is set and not empty is used."""
MAX_REPO_NAME = 256
FOLDER_PREFIX = "models--"
"""Beginning of the name of a repository's folder."""
BLOBS, REFS, SNAPSHOTS = "blobs", "refs", "snapshots"
"""Its folders: the first one changes all the time during a download, the second one says which snapshot is current."""
_REPO = re.compile(r"\w+(?:[.-]\w+)*/\w+(?:[.-]\w+)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-fA-F]{40}")
_OBJECT = re.compile(r"[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")


class RepoSnapshot(Struct, frozen=True):
    """The files of one repository at its current commit, by their path in the repository, sorted."""

    repo: str
    commit: str
    files: Mapping[str, Path]


def cache_dir(environ: Mapping[str, str]) -> Path:
    for variable, below in CACHE_VARIABLES:
        if environ.get(variable):
            return Path(environ[variable]) / below
    return Path.home() / ".cache/huggingface/hub"


def plain_url_dir(environ: Mapping[str, str]) -> Path:
    """Return the folder for downloads from plain URLs, such as `--model-url`."""
    if environ.get("LLAMA_CACHE"):
        return Path(environ["LLAMA_CACHE"])
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]) / "llama.cpp"
    return Path(environ.get("HOME") or Path.home()) / ".cache" / "llama.cpp"


def is_repo_name(repo: str) -> bool:
    return len(repo) <= MAX_REPO_NAME and _REPO.fullmatch(repo) is not None


def is_object_id(text: str) -> bool:
    return _OBJECT.fullmatch(text) is not None


def is_commit(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def is_inside(path: str) -> bool:
    """Return True for a relative path that cannot leave the folder to which it is joined."""
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path


def repo_dir(cache: Path, repo: str) -> Path:
    return cache / (FOLDER_PREFIX + repo.replace("/", "--"))


def snapshots(cache: Path) -> Iterator[RepoSnapshot]:
    """Yield every cached repository that has a current commit, sorted by folder."""
    try:
        folders = sorted(entry.name for entry in os.scandir(cache) if entry.is_dir())
    except OSError:
        return
    for folder in folders:
        if found := snapshot_in(cache / folder):
            yield found


def snapshot(cache: Path, repo: str) -> RepoSnapshot | None:
    """Return the repository's files; None if the cache has no commit of it. Links to missing blobs are left out.

    A hub does not distinguish upper and lower case in names, so a folder that differs only in case is used if there is
    no other one. The result has the folder's spelling.
    """
    if not is_repo_name(repo):
        return None
    exact = repo_dir(cache, repo)
    others = (cache / name for name in _folders_by_lower_case(cache).get(exact.name.lower(), ()) if name != exact.name)
    return snapshot_in(exact) or next((found for folder in others if (found := snapshot_in(folder))), None)


def _folders_by_lower_case(cache: Path) -> Mapping[str, tuple[str, ...]]:
    try:
        return _list_folders(str(cache), os.stat(cache).st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(maxsize=1)
def _list_folders(cache: str, mtime_ns: int) -> Mapping[str, tuple[str, ...]]:
    """Return the cache's entries by their names in lower case. The time changes with every new entry."""
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(os.listdir(cache)):
        found[name.lower()] = (*found.get(name.lower(), ()), name)
    return found


def snapshot_in(folder: Path) -> RepoSnapshot | None:
    """Return the files of the repository in a folder of a cache; None if it is no such folder or has no commit."""
    if not folder.name.startswith(FOLDER_PREFIX):
        return None
    repo = folder.name.removeprefix(FOLDER_PREFIX).replace("--", "/")
    if not is_repo_name(repo):
        return None
    commit = _current_commit(str(folder / REFS))
    root = str(folder / SNAPSHOTS / commit)
    if not commit or not os.path.isdir(root):
        return None
    files = {}
    for directory, _, names in os.walk(root):
        below = directory[len(root) + 1 :].replace(os.sep, "/")
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                files[f"{below}/{name}" if below else name] = Path(path)
    return RepoSnapshot(repo, commit, dict(sorted(files.items())))


def _current_commit(refs: str) -> str:
    """Return the commit of `main`, or of the first other branch if there is no `main`."""
    try:
        branches = sorted(os.listdir(refs), key=lambda name: (name != "main", name))
    except OSError:
        return ""
    for branch in (name for name in branches if not name.startswith(".")):
        try:
            lines = read_limited(os.path.join(refs, branch)).decode(errors="replace").splitlines()
        except OSError:  # a folder, a pipe, or a file that another program replaces now
            continue
        if lines and is_commit(commit := lines[0].strip()):
            return commit
    return ""


def write_ref(cache: Path, repo: str, branch: str, commit: str) -> None:
    """Set a branch to a commit, as the last step of a download: until then the cache shows the previous commit."""
    path = repo_dir(cache, repo) / REFS / branch
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    temporary.write_text(commit)
    temporary.replace(path)


def link(blob: Path, target: Path) -> None:
    """Link a blob into a snapshot atomically; if links are not possible, move the blob."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(target)
    try:
        temporary.symlink_to(os.path.relpath(blob, target.parent))
    except (OSError, NotImplementedError):
        shutil.move(blob, target)
    else:
        temporary.replace(target)


def _temporary_name(path: Path) -> Path:
    """Return a path in the same folder that no other thread or process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")
