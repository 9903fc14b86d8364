"""Read models again from their sources, download them into the cache, and remove them from it.

The handlers of all dialects call it, and it calls `lifecycle`. It knows names and settings, but no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from llama_corral.common.base.errors import ConfigError, InvalidRequest, NotFound, ServerFault
from llama_corral.common.hub.gguf_names import split_repo
from llama_corral.common.hub.hub_cache import is_repo_name
from llama_corral.common.hub.remove import remove_cached
from llama_corral.common.hub.resolve import is_offline_machine
from llama_corral.presets.merge import ConfigValue
from llama_corral.presets.preset import Preset

from .lifecycle.lifecycle import Lifecycle

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings

log = logging.getLogger("corral.router")

_TAG = re.compile(r"[\w.+:-]*[\w.+-]", re.ASCII)

WHERE = "a request"
"""Given as the origin of a download's options, in place of a file and line."""


class ReadPresets(Protocol):
    def __call__(self) -> Mapping[str, Preset]:
        """Read all sources again and return their presets. Raises ConfigError."""


async def reload_sources(read_presets: ReadPresets, lifecycle: Lifecycle) -> None:
    """Read all sources in a thread, then update the models. Raises ConfigError; then nothing changes.

    One call waits for the other, so that what was read first is never applied last. What was read is applied even if
    the caller is cancelled meanwhile: `read_presets` compares the next reading with it.
    """
    await asyncio.shield(_reload_sources(read_presets, lifecycle))


async def _reload_sources(read_presets: ReadPresets, lifecycle: Lifecycle) -> None:
    async with lifecycle.reading_sources:
        await _read_and_apply(read_presets, lifecycle)


async def _read_and_apply(read_presets: ReadPresets, lifecycle: Lifecycle) -> None:
    presets = await asyncio.to_thread(_read, read_presets, lifecycle.presets())
    log.info("the model sources were read again: %d models", len(presets))
    await lifecycle.reload(presets)


def _read(read_presets: ReadPresets, known: Mapping[str, Preset]) -> Mapping[str, Preset]:
    """Read all sources. Presets that are equal to those in `known` are the same objects, which are fast to apply.

    Those of repositories are always new, since the same options may mean other files now.
    """
    found = dict(read_presets())
    for name, preset in found.items():
        before = known.get(name)
        if before is not None and before == preset and "hf_repo" not in preset.layer:
            found[name] = before
    return found


class Library:
    def __init__(
        self, settings: Settings, lifecycle: Lifecycle, read_presets: ReadPresets, environ: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._read_presets = read_presets
        self._environ = environ
        self._next_reload: asyncio.Task[None] | None = None
        """The reload that has not begun to read; all requests that come until then share it."""

    async def reload(self) -> None:
        """Read all sources again, from now on or later. Raises ApiError.

        However many requests ask for it, at most one reload waits for the one in progress.
        """
        try:
            await self._shared_reload()
        except ConfigError as error:
            raise ServerFault(str(error)) from None

    async def _shared_reload(self) -> None:
        """Raises ConfigError."""
        if self._next_reload is None:
            self._next_reload = asyncio.create_task(self._read_when_free())
            self._next_reload.add_done_callback(_retrieve)
        await asyncio.shield(self._next_reload)

    async def _read_when_free(self) -> None:
        async with self._lifecycle.reading_sources:
            self._next_reload = None
            await _read_and_apply(self._read_presets, self._lifecycle)

    async def _check_sources(self) -> None:
        """Reload. Raise ServerFault if this fails. Called before something is changed that only a reload shows."""
        try:
            await self._shared_reload()
        except ConfigError as error:
            raise ServerFault(f"nothing was changed, because the sources cannot be read: {error}") from None

    def download(self, name: str) -> None:
        """Start to download `user/repo[:tag]`. Its progress is published as events. Raises ApiError.

        As in llama-server, --offline concerns only the loading of models, so a requested download is carried out.
        HF_HUB_OFFLINE concerns the whole machine.
        """
        if not name:
            raise InvalidRequest("model name is missing from the request")
        repo, colon, tag = name.partition(":")
        if not is_repo_name(repo) or (colon and not _TAG.fullmatch(tag)):
            raise InvalidRequest(f"'{name}' is not a repository name: expected user/repo or user/repo:quantization")
        if is_offline_machine(self._environ):
            raise InvalidRequest(f"'{name}' cannot be downloaded: HF_HUB_OFFLINE is set")
        layer = {"hf_repo": ConfigValue(name, WHERE)}
        if token := self._settings.main_model.hf_token.get_secret_value():
            layer["hf_token"] = ConfigValue(token, WHERE, is_secret=True)
        self._lifecycle.download(Preset(name, "cache", layer), self.reload)

    async def remove(self, name: str) -> None:
        """Stop a cached model's worker or its download, delete its files, and reload the sources. Raises ApiError.

        The sources are also reloaded before, so that nothing is deleted if this fails.
        `name` must be exact, not an alias. Requests that wait for the model are refused after it is removed.
        """
        if not name:
            raise InvalidRequest("model name is missing from the request")
        view = self._lifecycle.view(name)
        if view is None or view.name != name:
            raise NotFound("model is not found")
        if view.preset.source != "cache":
            raise InvalidRequest(f"model '{name}' is not in the cache: edit its {view.preset.source} to remove it")
        variants = [other.name for other in self._lifecycle.views() if other.preset.base == name]
        if variants:
            raise InvalidRequest(f"model '{name}' cannot be removed: it is the base of {', '.join(variants)}")
        await self._check_sources()
        await self._lifecycle.stop_and_wait(name)
        others = [split_repo(other)[0] for other in self._lifecycle.downloads()]
        keep = split_repo(name)[0] in others
        await asyncio.to_thread(remove_cached, self._environ, name, keep_unfinished=keep)
        await self.reload()
        self._lifecycle.publish_removed(name)


def _retrieve(reload: asyncio.Task[None]) -> None:
    """Mark its exception as retrieved: all requests that waited for it may have been cancelled."""
    if not reload.cancelled():
        reload.exception()
