"""Watch the presets file and the models directory, and read the sources again when they change.

The effect is that of `GET /models?reload=1`. If a source cannot be read, nothing changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llama_corral.common.base.errors import ConfigError
from watchfiles import Change, awatch

from .library import ReadPresets, reload_sources

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings

    from .lifecycle.lifecycle import Lifecycle

log = logging.getLogger("corral.router")

DEBOUNCE_MS = 200
"""Milliseconds without a further change before the sources are read, since editors write in several steps."""


async def watch(settings: Settings, read_presets: ReadPresets, lifecycle: Lifecycle) -> None:
    """Watch until cancelled. Return if there is nothing to watch, or if watching is impossible (which is logged)."""
    try:
        await _watch_files(settings, read_presets, lifecycle)
    except (OSError, RuntimeError) as error:  # too many watches, or the file system cannot be watched
        log.warning("changes of the model sources are not detected (GET /models?reload=1 reads them again): %s", error)


async def _watch_files(settings: Settings, read_presets: ReadPresets, lifecycle: Lifecycle) -> None:
    while folders := _folders(settings):
        async for _ in awatch(*folders, watch_filter=_filter(settings), recursive=False, step=DEBOUNCE_MS):
            await reload_presets(read_presets, lifecycle)
            if _folders(settings) != folders:
                break


async def reload_presets(read_presets: ReadPresets, lifecycle: Lifecycle) -> None:
    """Read the sources again. If one cannot be read, log the error with its line and change nothing."""
    try:
        await reload_sources(read_presets, lifecycle)
    except ConfigError as error:
        log.error("%s; the old presets are kept", error)


def _folders(settings: Settings) -> list[Path]:
    """Return the folders to watch. The file itself is not watched, since editors and Kubernetes replace it."""
    folders = []
    if settings.router.models_preset:
        folders.append(Path(settings.router.models_preset).absolute().parent)
    if settings.router.models_dir:
        models = Path(settings.router.models_dir).absolute()
        folders += [models, *(sorted(models.iterdir()) if models.is_dir() else ())]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _filter(settings: Settings) -> Callable[[Change, str], bool]:
    presets_name = Path(settings.router.models_preset).name if settings.router.models_preset else ""
    models = str(Path(settings.router.models_dir).absolute()) if settings.router.models_dir else ""

    def is_relevant(change: Change, path: str) -> bool:
        name = Path(path).name
        if presets_name and (name == presets_name or name == "..data"):  # the symbolic link that Kubernetes replaces
            return True
        return bool(models) and path.startswith(models) and change is not Change.modified

    return is_relevant
