"""The files of this machine that the worker of a preset needs, and which of them are missing.

A missing file is no fault of the section: it may be on a disk that is not mounted yet, so the router watches for it.
Files that are downloaded are not among them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from .layer import ConfigValue, Layer
from .options.settings import Settings
from .preset import Preset

_DOWNLOADED = {
    "model": ("model_url", "hf_repo", "docker_repo"),
    "mmproj": ("mmproj_url",),
    "model_draft": ("hf_repo_draft",),
}
"""Options that name a model file → the options with which this file is downloaded."""


def files_of(layer: Layer, settings: Settings) -> tuple[ConfigValue, ...]:
    """Return the paths, relative to the working directory, with their origins. `settings`: those of the layer."""
    return tuple(
        layer[name]
        for name, sources in _DOWNLOADED.items()
        if name in layer
        and layer[name].text
        and not any(layer[source].text for source in sources if source in layer)
        and (name != "mmproj" or settings.media.mmproj_auto)
    )


def missing(files: Iterable[ConfigValue]) -> tuple[ConfigValue, ...]:
    """Return the files that do not exist. Asks the system for each."""
    return tuple(file for file in files if not os.path.exists(file.text))


def presence(presets: Iterable[Preset]) -> Mapping[str, bool]:
    """Return the paths of the presets' files, and whether they existed when the presets were built."""
    absent = {file.text for preset in presets for file in preset.missing}
    return {file.text: file.text not in absent for preset in presets for file in preset.files}
