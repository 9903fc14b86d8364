"""Client of a Hugging Face hub or mirror: lists repositories and downloads their files into the cache.

Called by `resolve` when a model's files are not in the cache. huggingface_hub is not used: since 2.x it discards
unfinished downloads, and its listing calls have no timeout. Layout and locks are the same, so both can share a cache.
"""

from __future__ import annotations

import concurrent.futures
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from ..base.errors import ModelFilesError
from . import hub_cache
from .download import DownloadProgress, Transfer, fetch, new_client, redacted_url, refusal

DEFAULT_ENDPOINT = "https://huggingface.co"
PARALLEL = 4
"""Maximum number of parallel downloads."""
MAX_PAGES = 100
"""Maximum number of pages of a repository's listing; a page has a thousand files."""
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{34,253}")


class RemoteFile(Struct, frozen=True):
    path: str
    size: int
    object_id: str
    sha256: str | None
    """Known only for large files."""


class RepoListing(Struct, frozen=True):
    repo: str
    branch: str
    commit: str
    files: Mapping[str, RemoteFile]
    """Files by path, sorted."""


def endpoint(environ: Mapping[str, str]) -> str:
    """Return the hub's base URL without a slash at the end."""
    return (environ.get("MODEL_ENDPOINT") or environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def is_token(token: str) -> bool:
    return _TOKEN.fullmatch(token) is not None


class HubClient:
    """Hub client, to be used as a context manager. All methods raise ModelFilesError."""

    def __init__(self, endpoint: str, token: str = "") -> None:
        """`token` is sent only if it has the format of a Hugging Face token."""
        self.endpoint = endpoint
        self.headers = {"Authorization": f"Bearer {token}"} if is_token(token) else {}
        self.client = new_client()

    def __enter__(self) -> HubClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()

    def listing(self, repo: str) -> RepoListing:
        branch, commit = self._head(repo)
        files = {}
        for item in self._pages(f"/api/models/{repo}/tree/{commit}?recursive=true", repo):
            file = _remote_file(item)
            if file:
                files[file.path] = file
        return RepoListing(repo, branch, commit, dict(sorted(files.items())))

    def download(
        self,
        listing: RepoListing,
        paths: Iterable[str],
        cache: Path,
        on_progress: Callable[[DownloadProgress], None],
    ) -> dict[str, Path]:
        """Download the missing files and return the local path of each file by its path in the repository.

        The cached branch is set to the listing's commit after all files are complete.
        """
        folder = hub_cache.repo_dir(cache, listing.repo)
        root = folder / hub_cache.SNAPSHOTS / listing.commit
        wanted = [listing.files[path] for path in dict.fromkeys(paths)]
        missing = {file.object_id: file for file in wanted if not (root / file.path).is_file()}
        transfers = [self._transfer(listing, file, cache) for file in missing.values()]
        transfers = [transfer for transfer in transfers if not _has_blob(transfer)]
        _check_space(cache, transfers)
        self._fetch_all(transfers, on_progress)
        for file in listing.files.values():
            blob = folder / hub_cache.BLOBS / file.object_id
            if not (root / file.path).is_file() and blob.is_file():  # also unchanged files of an earlier commit
                hub_cache.link(blob, root / file.path)
        hub_cache.write_ref(cache, listing.repo, listing.branch, listing.commit)
        return {file.path: root / file.path for file in wanted}

    def _transfer(self, listing: RepoListing, file: RemoteFile, cache: Path) -> Transfer:
        folder = hub_cache.repo_dir(cache, listing.repo)
        return Transfer(
            url=f"{self.endpoint}/{listing.repo}/resolve/{listing.commit}/{quote(file.path)}",
            target=folder / hub_cache.BLOBS / file.object_id,
            headers=self.headers,
            size=file.size,
            sha256=file.sha256,
            lock=cache / ".locks" / folder.name / f"{file.object_id}.lock",
        )

    def _fetch_all(self, transfers: list[Transfer], on_progress: Callable[[DownloadProgress], None]) -> None:
        """Download in parallel. The first failure stops the others; unfinished files are kept for the next try."""
        stop = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(PARALLEL, thread_name_prefix="download") as pool:
            running = [pool.submit(fetch, self.client, transfer, on_progress, stop) for transfer in transfers]
            try:
                for future in concurrent.futures.as_completed(running):
                    future.result()
            except BaseException:
                stop.set()
                raise

    def _head(self, repo: str) -> tuple[str, str]:
        answer, _ = self._get(f"/api/models/{repo}/refs", repo)
        branches = {}
        for branch in answer.get("branches", ()) if isinstance(answer, dict) else ():
            name, commit = str(branch.get("name", "")), str(branch.get("targetCommit", ""))
            if hub_cache.is_commit(commit) and hub_cache.is_inside(name):
                branches[name] = commit
        if not branches:
            raise ModelFilesError(f"repository {repo} on {self.endpoint} has no commits")
        name = "main" if "main" in branches else next(iter(branches))
        return name, branches[name]

    def _pages(self, path: str, repo: str) -> Iterable[Any]:
        following: str | None = path
        for _ in range(MAX_PAGES):
            if following is None:
                return
            answer, following = self._get(following, repo)
            if not isinstance(answer, list):
                raise ModelFilesError(f"{redacted_url(self.endpoint)} returned an invalid file listing for {repo}")
            yield from answer

    def _get(self, path: str, repo: str) -> tuple[Any, str | None]:
        """Return the JSON response and the URL of the next page."""
        import httpx

        url = path if "://" in path else self.endpoint + path
        try:
            response = self.client.get(url, headers=self.headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise ModelFilesError(f"cannot reach {redacted_url(self.endpoint)} to look up {repo}: {reason}") from None
        if response.status_code != 200:
            raise ModelFilesError(refusal(response, f"repository {repo} on {redacted_url(self.endpoint)}"))
        try:
            return response.json(), response.links.get("next", {}).get("url")
        except ValueError:
            raise ModelFilesError(f"{redacted_url(url)} did not answer with JSON: is it a Hugging Face hub?") from None


def _remote_file(item: Any) -> RemoteFile | None:
    """Return None for an entry that is not a valid file, or whose path would leave the cache folder."""
    if not isinstance(item, dict) or item.get("type") != "file":
        return None
    path, lfs = item.get("path"), item.get("lfs")
    object_id = lfs.get("oid") if isinstance(lfs, dict) else item.get("oid")
    size = item.get("size")
    if not isinstance(path, str) or not hub_cache.is_inside(path) or not isinstance(size, int):
        return None
    if not isinstance(object_id, str) or not hub_cache.is_object_id(object_id):
        return None
    return RemoteFile(path, size, object_id, object_id if len(object_id) == 64 else None)


def _has_blob(transfer: Transfer) -> bool:
    """Return True if the finished blob exists. A blob of the wrong size is damaged and is deleted."""
    if not transfer.target.is_file():
        return False
    if transfer.target.stat().st_size == transfer.size:
        return True
    transfer.target.unlink()
    return False


def _check_space(cache: Path, transfers: list[Transfer]) -> None:
    need = sum((transfer.size or 0) - transfer.length() for transfer in transfers)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if need > free:
        raise ModelFilesError(f"the download needs {need / 1e9:.1f} GB, but {cache} has {free / 1e9:.1f} GB left")
