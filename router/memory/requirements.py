"""Estimate how much memory each preset's model needs, from its files on this machine.

Runs in a thread before a model enters the queue, because it reads files; it makes no network request. After a load, the
size that the worker measured replaces the estimate, until the preset or the file changes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llama_corral.common.base.errors import ConfigError, ModelFilesError
from llama_corral.common.hub.gguf_header import GgufError, read_header
from llama_corral.common.hub.gguf_names import shards_of
from llama_corral.common.hub.resolve import ModelFiles, resolve_files
from llama_corral.presets import merge
from msgspec.structs import replace

from ..placement.device_split import Need, distribute
from ..placement.memory_amounts import NOTHING, Space
from .devices import Devices, unknown_device
from .estimate import PROCESS_BYTES, Footprint, estimate
from .options import draft_footprint_options, footprint_options, projector_device

if TYPE_CHECKING:
    from llama_corral.presets.backends import Backend
    from llama_corral.presets.options.settings import Settings
    from llama_corral.presets.preset import Preset

log = logging.getLogger("corral.router")

Key = tuple[tuple[str, str], ...]


class MemoryRequirements:
    """`environ`: what workers inherit. `devices`: layers are offloaded to them by default."""

    def __init__(self, environ: Mapping[str, str], devices: Devices) -> None:
        self._environ = environ
        self._devices = devices
        self._measured: dict[Key, Need] = {}

    def expected(self, preset: Preset) -> Need | None:
        """Return what the preset's model needs, or None if unknown (a file is missing or invalid). Blocking."""
        known = self._measured.get(_key(preset))
        if known is not None:
            return known
        if preset.backend is not None:
            declared = self._declared(preset.backend)
            return Need(declared) if declared != NOTHING else None
        try:
            settings = merge.worker_settings(preset.layer, self._environ)
            footprint = self._footprint(settings)
        except (ConfigError, ModelFilesError, GgufError, OSError) as error:
            log.debug("name=%s: its memory requirement is unknown: %s", preset.name, error)
            return None
        return footprint.need + Need(Space(PROCESS_BYTES))

    def record_load(self, preset: Preset, need: Need, taken: Space, estimated: Space) -> Need:
        """Save and return what the next load needs.

        It is `need`, corrected for the difference of `taken`, the measured size, and `estimated`, its estimate.
        """
        measured = self._measured[_key(preset)] = need.on_devices(self._devices.names).corrected_by(taken, estimated)
        return measured

    def _declared(self, backend: Backend) -> Space:
        """Return the declared memory of an external program. One number for several devices is split by their sizes."""
        sizes, totals = backend.device_bytes, self._devices.totals
        if len(sizes) == 1 and len(totals) > 1:
            return Space(backend.host_bytes) + distribute(sizes[0], tuple(totals), tuple(totals.values()))
        names = [*totals, *(unknown_device(i) for i in range(len(totals), len(sizes)))]
        return Space(backend.host_bytes, dict(zip(names, sizes, strict=False)))

    def _footprint(self, settings: Settings) -> Footprint:
        files = resolve_files(settings.with_options({"offline": True}), self._environ)
        options = footprint_options(settings, self._devices)
        shards = [read_header(path) for path in shards_of(files.model)]
        footprint = estimate(shards, options)
        if files.draft is not None:
            draft = [read_header(path) for path in shards_of(files.draft)]
            n_ctx = options.context_of(shards[0]).n_ctx  # the worker gives both models a context of the same size
            footprint += estimate(draft, replace(draft_footprint_options(settings, self._devices), n_ctx=n_ctx))
        return footprint + self._companions(settings, files)

    def _companions(self, settings: Settings, files: ModelFiles) -> Footprint:
        adapters = [Path(path) for path in settings.main_model.lora] + [
            Path(path) for path, _ in settings.main_model.lora_scaled
        ]
        size = sum(path.stat().st_size for path in adapters)
        projector = files.mmproj.stat().st_size if files.mmproj else 0
        device = projector_device(settings, self._devices)
        space = Space(size, {device: projector}) if device else Space(size + projector)
        return Footprint(weights=size + projector, need=Need(space))


def _key(preset: Preset) -> Key:
    """Return a key of all options and the size of the file, so that a replaced file does not match."""
    path = preset.layer.get("model")
    if preset.backend is not None:
        return (("cmd", repr(preset.backend)),)
    try:
        size = str(Path(path.text).stat().st_size) if path else ""
    except OSError:
        size = ""
    return (*sorted((name, given.text) for name, given in preset.layer.items()), ("", size))
