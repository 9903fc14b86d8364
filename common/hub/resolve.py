"""Finds or downloads a model's files as the options request them (`--model`, `--hf-repo`, `--model-url`, …).

The worker calls `resolve_files` before it loads. The router lists the cache and finds cached files without network
access. Complete files in the cache are used without asking the hub; only missing files are downloaded: neither a load
nor a swap may depend on the network. (llama-server contacts the hub at every load.)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct

from ..base.errors import ModelFilesError
from ..base.user_files import why_not_a_file
from . import hub_cache
from .client import HubClient, RepoListing, endpoint, is_token
from .download import DownloadProgress as DownloadProgress
from .download import Transfer, fetch, new_client, redacted_url
from .gguf_header import is_mtp_head
from .gguf_names import (
    DRAFT_KINDS,
    DraftKind,
    RepoModelFiles,
    choose_files,
    is_gguf,
    listed_tag,
    shard_names,
    split_repo,
)
from .hub_cache import cache_dir as cache_dir

if TYPE_CHECKING:
    from ..base.common_settings import ModelSettings

PRESET_FILE = "preset.ini"
"""If a repository has this file in its root, `--hf-repo` starts a router with these presets."""
MAX_SHOWN = 20
"""Maximum number of a repository's files named in one error."""

OnProgress = Callable[[DownloadProgress], None]
logger = logging.getLogger("corral.presets")


class ModelFiles(Struct, frozen=True):
    model: Path
    """The first shard; the others are in the same folder."""
    mmproj: Path | None = None
    draft: Path | None = None
    draft_kind: DraftKind | None = None
    """Set if the draft is a head for this model, not a separate model."""


def ignore_progress(_: DownloadProgress) -> None:
    pass


def list_cached(environ: Mapping[str, str]) -> list[str]:
    """Return every cached model as `user/repo:TAG`."""
    found: dict[str, None] = {}
    for snapshot in hub_cache.snapshots(cache_dir(environ)):
        found |= dict.fromkeys(f"{snapshot.repo}:{tag}" for tag in listed_models(snapshot))
    return list(found)


def listed_models(snapshot: hub_cache.RepoSnapshot) -> list[str]:
    """Return the tags of a repository's models."""
    return list(dict.fromkeys(tag for path in snapshot.files if (tag := listed_tag(path))))


def find_cached(environ: Mapping[str, str], hf_repo: str, hf_file: str = "") -> Mapping[str, Path]:
    """Return the cached files of `hf_repo` (with optional tag) by role: model, mmproj. Never uses the network."""
    repo, tag = split_repo(hf_repo)
    snapshot = hub_cache.snapshot(cache_dir(environ), repo)
    choice = choose_files(snapshot.files, tag, file=hf_file) if snapshot else RepoModelFiles()
    if snapshot is None or not choice.model:
        return {}
    paths = {"model": choice.model[0], "mmproj": choice.mmproj}
    return {role: snapshot.files[path] for role, path in paths.items() if path}


def is_offline(settings: ModelSettings, environ: Mapping[str, str]) -> bool:
    return settings.main_model.offline or is_offline_machine(environ)


def is_offline_machine(environ: Mapping[str, str]) -> bool:
    """Return True if HF_HUB_OFFLINE is set: Python programs obey it, so this one does too."""
    return environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def remote_preset(settings: ModelSettings, environ: Mapping[str, str]) -> Path | None:
    """Return the presets file if `--hf-repo` names presets instead of a model; download it again if possible."""
    if not settings.main_model.hf_repo or settings.main_model.hf_file:
        return None
    repo, tag = _repo_and_tag(settings.main_model.hf_repo)
    repo, files = _cached(cache_dir(environ), repo)
    cached = files.get(PRESET_FILE)
    if is_offline(settings, environ) or (not cached and choose_files(files, tag).model):
        return cached
    try:
        with HubClient(endpoint(environ), _token(settings)) as client:
            listing = client.listing(repo)
            if PRESET_FILE not in listing.files:
                return None
            return client.download(listing, [PRESET_FILE], cache_dir(environ), ignore_progress)[PRESET_FILE]
    except ModelFilesError as error:
        if cached is None:
            raise
        logger.warning("using the cached presets of %s: %s", repo, error)
        return cached


def resolve_files(
    settings: ModelSettings, environ: Mapping[str, str], on_progress: OnProgress = ignore_progress
) -> ModelFiles:
    """Download missing files and return the paths; blocks. `on_progress` is called from other threads.

    Raise ModelFilesError.
    """
    return _Resolver(settings, environ, on_progress).files()


class _FoundFiles(Struct, frozen=True):
    choice: RepoModelFiles
    paths: Mapping[str, Path]

    def path(self, name: str | None) -> Path | None:
        return self.paths[name] if name else None


class _Resolver:
    def __init__(self, settings: ModelSettings, environ: Mapping[str, str], on_progress: OnProgress) -> None:
        self.settings = settings
        self.environ = environ
        self.on_progress = on_progress
        self.cache = cache_dir(environ)

    def files(self) -> ModelFiles:
        main = self.settings.main_model
        heads = _heads(self.settings.drafts.spec_type)
        if main.hf_repo:
            found = self._repository(
                main.hf_repo,
                main.hf_file,
                want_mmproj=self._auto_mmproj,
                heads=() if self._has_draft else heads,
            )
        elif main.model_url:
            path = self._from_url(main.model_url, main.model)
            found = _FoundFiles(RepoModelFiles((str(path),)), {str(path): path})
        elif main.model:
            found = _FoundFiles(RepoModelFiles((main.model,)), {main.model: _existing(main.model)})
        else:
            raise ModelFilesError("no model given: use --model, --hf-repo or --model-url")
        model = found.path(found.choice.model[0] if found.choice.model else None)
        if model is None:
            raise ModelFilesError(f"repository {main.hf_repo} contains projectors or drafts, but no model")
        draft, kind = self._draft(found)
        return ModelFiles(model, self._mmproj(found), draft, kind)

    @property
    def _auto_mmproj(self) -> bool:
        media = self.settings.media
        return media.mmproj_auto and not media.mmproj and not media.mmproj_url

    @property
    def _has_draft(self) -> bool:
        return bool(self.settings.drafts.hf_repo_draft or self.settings.drafts.model_draft)

    def _mmproj(self, found: _FoundFiles) -> Path | None:
        """Return the projector. `--no-mmproj` overrides all options that name one, so /models and the worker agree."""
        media = self.settings.media
        if not media.mmproj_auto:
            return None
        if media.mmproj_url:
            return self._from_url(media.mmproj_url, media.mmproj)
        return _existing(media.mmproj) if media.mmproj else found.path(found.choice.mmproj)

    def _draft(self, found: _FoundFiles) -> tuple[Path | None, DraftKind | None]:
        drafts = self.settings.drafts
        if drafts.hf_repo_draft:
            asked = _heads(drafts.spec_type)
            plain = bool(drafts.model_draft) or (not asked and not set(drafts.spec_type) <= {"none"})
            other = self._repository(
                drafts.hf_repo_draft,
                drafts.model_draft,
                want_mmproj=False,
                heads=() if plain else asked or DRAFT_KINDS,
                heads_needed=bool(asked),
            )
            if other.choice.draft:
                return other.path(other.choice.draft), other.choice.draft_kind
            if not other.choice.model:
                raise ModelFilesError(f"repository {drafts.hf_repo_draft} contains no draft model")
            return other.path(other.choice.model[0]), None
        if drafts.model_draft:
            path = _existing(drafts.model_draft)
            return path, "mtp" if is_mtp_head(path) else None
        return found.path(found.choice.draft), found.choice.draft_kind

    def _repository(
        self, hf_repo: str, hf_file: str, *, want_mmproj: bool, heads: Sequence[DraftKind], heads_needed: bool = True
    ) -> _FoundFiles:
        repo, tag = _repo_and_tag(hf_repo)
        repo, cached = _cached(self.cache, repo)
        choice = choose_files(cached, tag, file=hf_file, want_mmproj=want_mmproj, drafts=heads)
        offline = is_offline(self.settings, self.environ)
        if _is_complete(choice, cached) and (choice.draft or not heads or not heads_needed or offline):
            return _FoundFiles(choice, cached)
        if offline:
            raise ModelFilesError(_not_found(f"the cache {self.cache} (--offline)", hf_repo, hf_file, cached))
        with HubClient(endpoint(self.environ), _token(self.settings)) as client:
            listing = client.listing(repo)
            choice = choose_files(listing.files, tag, file=hf_file, want_mmproj=want_mmproj, drafts=heads)
            if not choice.files:
                raise ModelFilesError(_not_found(client.endpoint, hf_repo, hf_file, listing.files))
            logger.info("downloading %s of %s", ", ".join(choice.files), repo)
            return _FoundFiles(choice, self._download(client, listing, choice))

    def _download(self, client: HubClient, listing: RepoListing, choice: RepoModelFiles) -> Mapping[str, Path]:
        return client.download(listing, choice.files, self.cache, self.on_progress)

    def _from_url(self, url: str, wanted: str) -> Path:
        """Download every shard. Existing files are not checked for a newer version; delete them to update."""
        parts = urlsplit(url)
        names = shard_names(parts.path)
        if len(names) == 1 and wanted:
            targets = [Path(wanted)]
        else:
            folder = Path(wanted).parent if wanted else hub_cache.plain_url_dir(self.environ)
            targets = [folder / name.rpartition("/")[2] for name in names]
        for name, target in zip(names, targets, strict=True):
            if not target.is_file():
                self._fetch(urlunsplit(parts._replace(path=name, fragment="")), target)
        return targets[0]

    def _fetch(self, url: str, target: Path) -> None:
        if is_offline(self.settings, self.environ):
            raise ModelFilesError(f"{target} does not exist, and --offline forbids downloading {redacted_url(url)}")
        home = endpoint(self.environ)
        token = _token(self.settings) if url.startswith(home + "/") else ""  # no other host may get the token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with new_client() as client:
            fetch(client, Transfer(url, target, headers), self.on_progress, threading.Event())


def _token(settings: ModelSettings) -> str:
    token = settings.main_model.hf_token.get_secret_value()
    if token and not is_token(token):
        logger.warning("the value of --hf-token or HF_TOKEN is not a Hugging Face token, sending no token")
        return ""
    return token


def _repo_and_tag(hf_repo: str) -> tuple[str, str]:
    repo, tag = split_repo(hf_repo)
    if not hub_cache.is_repo_name(repo):
        raise ModelFilesError(f"{hf_repo!r} is not a repository: expected user/model or user/model:quantization")
    return repo, tag


def _cached(cache: Path, repo: str) -> tuple[str, Mapping[str, Path]]:
    """Return a repository's name as the cache spells it, and its cached files; the given name and {} if it has none."""
    snapshot = hub_cache.snapshot(cache, repo)
    return (snapshot.repo, snapshot.files) if snapshot else (repo, {})


def _heads(spec_type: Sequence[str]) -> tuple[DraftKind, ...]:
    return tuple(kind for kind in DRAFT_KINDS if f"draft-{kind}" in spec_type)


def _existing(path: str) -> Path:
    """Return the path; raise ModelFilesError if a shard of the model is missing."""
    for name in shard_names(path):
        if why := why_not_a_file(name):
            raise ModelFilesError(f"{name}: {why}" + ("" if name == path else f" (a part of {path})"))
    return Path(path)


def _is_complete(choice: RepoModelFiles, cached: Mapping[str, Path]) -> bool:
    """Return True if all shards are cached. A projector may be absent: only the hub knows if there is one."""
    return bool(choice.files) and all(name in cached for path in choice.model[:1] for name in shard_names(path))


def _not_found(where: str, hf_repo: str, hf_file: str, files: Mapping[str, object]) -> str:
    repo, tag = split_repo(hf_repo)
    wanted = f"file {hf_file}" if hf_file else f"GGUF model with the tag {tag}" if tag else "GGUF model"
    present = [path for path in files if is_gguf(path)]
    more = f" and {len(present) - MAX_SHOWN} more" if len(present) > MAX_SHOWN else ""
    have = f"it has {', '.join(present[:MAX_SHOWN])}{more}" if present else "it has no GGUF files"
    return f"{where} has no complete {wanted} in {repo}; {have}"
