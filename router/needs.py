"""How much memory each preset's model will need, from its files as they are on this machine now.

Called by `lifecycle` before a model is queued, on another thread, since it reads files; never asks a network. What a
worker measured once it had loaded is remembered for as long as the preset and its file stay what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..presets import layers
from ..presets.errors import ConfigError, ModelFilesError
from ..presets.gguf_header import GgufError, read_header
from ..presets.gguf_names import shard_names
from ..presets.hub import ModelFiles, resolve_files
from .footprint import PROCESS_BYTES, Footprint, draft_plan_of, estimate, plan_of
from .space import NOTHING, Space

if TYPE_CHECKING:
    from ..presets.settings import Settings
    from ..presets.sources import Preset

log = logging.getLogger("corral.router")

Key = tuple[tuple[str, str], ...]


class Needs:
    """`environ` is what workers inherit; `has_devices`: layers go there unless a preset says otherwise."""

    def __init__(self, environ: Mapping[str, str], *, has_devices: bool) -> None:
        self._environ = environ
        self._has_devices = has_devices
        self._measured: dict[Key, Space] = {}

    def expected(self, preset: Preset) -> Space | None:
        """Blocking. None: its files are not all here, so nobody knows."""
        known = self._measured.get(_key(preset))
        if known is not None:
            return known
        if preset.backend is not None:
            declared = Space(preset.backend.host_bytes, preset.backend.device_bytes)
            return declared if declared != NOTHING else None
        try:
            settings = layers.resolve(layers.read_environment(self._environ), preset.layer)
            footprint = self._footprint(settings)
        except (ConfigError, ModelFilesError, GgufError, OSError) as error:
            log.debug("name=%s: what it needs is unknown: %s", preset.name, error)
            return None
        return Space(footprint.host + PROCESS_BYTES, footprint.device)

    def learn(self, preset: Preset, taken: Space) -> Space:
        """`taken`: what llama.cpp allocated for it; returned with what the process takes beside that."""
        measured = self._measured[_key(preset)] = Space(taken.host + PROCESS_BYTES, taken.device)
        return measured

    def _footprint(self, settings: Settings) -> Footprint:
        files = resolve_files(settings.model_copy(update={"offline": True}), self._environ)
        plan = plan_of(settings, has_devices=self._has_devices)
        footprint = estimate([read_header(path) for path in _shards(files.model)], plan)
        if files.draft is not None:
            draft = [read_header(path) for path in _shards(files.draft)]
            footprint += estimate(draft, draft_plan_of(settings, has_devices=self._has_devices))
        return footprint + self._companions(settings, files)

    def _companions(self, settings: Settings, files: ModelFiles) -> Footprint:
        adapters = [Path(path) for path in settings.lora] + [Path(path) for path, _ in settings.lora_scaled]
        size = sum(path.stat().st_size for path in adapters)
        projector = files.mmproj.stat().st_size if files.mmproj else 0
        on_device = self._has_devices and settings.mmproj_offload
        return Footprint(weights=size + projector, device=projector if on_device else 0)


def _shards(first: Path) -> list[Path]:
    return [first.with_name(name) for name in shard_names(first.name)]


def _key(preset: Preset) -> Key:
    """Every option, and the size of the file, so that another model in its place is a stranger."""
    path = preset.layer.get("model")
    if preset.backend is not None:
        return (("cmd", repr(preset.backend)),)
    try:
        size = str(Path(path.text).stat().st_size) if path else ""
    except OSError:
        size = ""
    return (*sorted((name, given.text) for name, given in preset.layer.items()), ("", size))
