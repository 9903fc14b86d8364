"""The files of this machine that the worker of a preset needs to load its model, and which of them are missing.

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
"""Options that name a file → the options with which this file is downloaded."""


def files_of(layer: Layer, settings: Settings) -> tuple[ConfigValue, ...]:
    """Return the paths, relative to the working directory, with their origins. `settings`: those of the layer."""
    main = settings.main_model
    paths = {
        "model": (main.model,),
        "mmproj": (settings.media.mmproj,) if settings.media.mmproj_auto else (),
        "model_draft": (settings.drafts.model_draft,),
        "chat_template_file": (settings.chat.chat_template_file,),
        "lora": main.lora,
        "lora_scaled": tuple(path for path, _ in main.lora_scaled),
        "control_vector": main.control_vector,
        "control_vector_scaled": tuple(path for path, _ in main.control_vector_scaled),
    }
    return tuple(
        layer[name]._replace(text=path)
        for name, found in paths.items()
        if name in layer and not any(layer[other].text for other in _DOWNLOADED.get(name, ()) if other in layer)
        for path in found
        if path
    )


def missing(files: Iterable[ConfigValue]) -> tuple[ConfigValue, ...]:
    """Return the files that do not exist. Asks the system for each."""
    return tuple(file for file in files if not os.path.exists(file.text))


def presence(presets: Iterable[Preset]) -> Mapping[str, bool]:
    """Return the paths of the presets' files, and whether they existed when the presets were built."""
    absent = {file.text for preset in presets for file in preset.missing}
    return {file.text: file.text not in absent for preset in presets for file in preset.files}
