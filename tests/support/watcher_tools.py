"""Runs the watcher of the model sources with a lifecycle, connected as the router connects them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llama_corral.presets.options.settings import Settings
from llama_corral.presets.sources import PresetReader
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.source_stamps import SourcePlaces, source_places
from llama_corral.router.watcher import Reload, SourceWatcher, reload_presets
from router_tools import fake_launcher, until

REPO = "models--me--repo"
COMMIT = "1" * 40


def section(name: str) -> str:
    return f"[{name}]\nmodel = {name}.gguf\n"


def cache_in(root: Path, folder: str = "cache") -> dict[str, str]:
    return {"LLAMA_CACHE": str(root / folder)}


def places(root: Path, **options: Any) -> SourcePlaces:
    """Return the sources of a router with these options, and with its cache in `root`."""
    return source_places(Settings.of(**options), cache_in(root))


@contextlib.asynccontextmanager
async def watching(watcher: SourceWatcher, reload: Reload) -> AsyncIterator[None]:
    """Run the watcher. An error of it is raised at the end."""
    task = asyncio.create_task(watcher.watch(reload))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def watched(root: Path, *, cache: str = "cache", **options: Any) -> AsyncIterator[Lifecycle]:
    """Yield a lifecycle whose presets follow the sources that the options name. The cache is a folder in `root`."""
    settings, environ = Settings.of(**options), cache_in(root, cache)
    read = PresetReader(settings, {}, environ)
    watcher = SourceWatcher(source_places(settings, environ), read.files)
    lifecycle = Lifecycle(read(), fake_launcher("spawn"), models_max=1, autoload=True)
    try:
        async with watching(watcher, lambda: reload_presets(read, lifecycle)):
            yield lifecycle
    finally:
        await lifecycle.close()


async def shows(lifecycle: Lifecycle, *names: str) -> None:
    """Wait until exactly these models are there."""
    await until(lambda: [view.name for view in lifecycle.views()] == sorted(names))
