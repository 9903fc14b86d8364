"""The cards of all models for lists: from memory, with headers read in a thread, a few at a time.

A list never waits long: a header with a large vocabulary takes 40 ms, so a thousand new files take a minute. Until they
are read, a list shows their sizes and dates only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_corral.common.hub.file_cache import MAX_FILES
from llama_corral.common.hub.model_card import ModelCard, read_brief_card
from llama_corral.common.hub.resolve import find_cached

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset

PATIENCE_S = 2.0
"""Seconds for which lists wait when headers begin to be read; some clients give a list five seconds."""
SLICE_S = 0.05
"""Seconds for which a thread reads headers before the event loop may end it."""


class ModelCards:
    def __init__(self, environ: Mapping[str, str], *, patience: float = PATIENCE_S) -> None:
        self._environ = environ
        self._patience = patience
        self._reading: asyncio.Task[None] | None = None
        self._wait_until = 0.0
        """Until when lists wait for it."""
        self._files: dict[str, tuple[Preset, Path | None]] = {}
        """Each listed model's first file, found for this preset."""

    def file(self, preset: Preset) -> Path | None:
        """Return the first file of the preset's model, or None if it is not on this machine. Blocking."""
        if model := preset.layer.get("model"):
            return Path(model.text)
        repo, file = preset.layer.get("hf_repo"), preset.layer.get("hf_file")
        return find_cached(self._environ, repo.text, file.text if file else "").get("model") if repo else None

    async def brief(self, presets: Sequence[Preset]) -> dict[str, ModelCard]:
        """Return the cards by the presets' names, without templates and metadata."""
        files = await asyncio.to_thread(self._find, presets)
        cards = await asyncio.to_thread(_known, files)
        unread = [card.path for card in cards.values() if not card.is_read]
        if not unread:
            return cards
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(_read(unread))
            self._wait_until = time.monotonic() + self._patience
        await asyncio.wait([self._reading], timeout=max(0.0, self._wait_until - time.monotonic()))
        return await asyncio.to_thread(_known, files)

    def _find(self, presets: Sequence[Preset]) -> dict[str, Path | None]:
        """Return the models' files by name. A repository is searched once for each preset, until its file is there.

        Presets are compared by identity: `library` passes a new object if the files of a repository may be others.
        """
        found: dict[str, tuple[Preset, Path | None]] = {}
        for preset in presets:
            known, file = self._files.get(preset.name, (None, None))
            if known is not preset or file is None:
                file = self.file(preset)
            found[preset.name] = preset, file
        self._files = {**self._files, **found} if len(self._files) < MAX_FILES else found
        return {name: file for name, (_, file) in found.items()}


def _known(files: Mapping[str, Path | None]) -> dict[str, ModelCard]:
    return {name: read_brief_card(file, may_read=False) for name, file in files.items()}


async def _read(files: Sequence[Path | None]) -> None:
    """Read the headers that were not read yet. If it is cancelled, it ends after one slice."""
    rest = iter(files)
    while not await asyncio.to_thread(_read_slice, rest, time.monotonic() + SLICE_S):
        pass


def _read_slice(rest: Iterator[Path | None], until: float) -> bool:
    """Read headers until a time; return True if all were read."""
    for file in rest:
        read_brief_card(file)
        if time.monotonic() > until:
            return False
    return True
