"""Watch the model sources and the file with the API keys, and read all of them again when one changes.

The effect is that of `GET /models?reload=1`. If a source cannot be read, nothing changes. `watchfiles` reports changes
in folders at once. In addition the metadata of all paths is compared each second (`source_stamps`), since no event
reports that a link far above a file was switched, that a folder was replaced, or what another machine does. Model files
that presets name may be anywhere, so only their presence is compared: a file that was missing may be there now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.user_files import is_utf8
from llama_corral.presets.models_dir import MAX_FOLDERS
from watchfiles import awatch

from .library import ReadPresets, reload_sources
from .lifecycle.lifecycle import Lifecycle
from .source_stamps import SourcePlaces, Survey, survey

log = logging.getLogger("corral.router")

POLL_S = 1.0
POLL_SHARE = 0.02
"""Share of one processor that the comparisons may use: with very many folders they are less frequent."""
SETTLE_S = 0.2
"""Seconds without a further change before the sources are read, since editors write in several steps."""
LONGEST_SETTLE_S = 2.0
RETRY_S = 60.0
"""Seconds until `watchfiles` is tried again after it has failed."""

Reload = Callable[[], Awaitable[object]]


class SourceWatcher:
    def __init__(self, places: SourcePlaces, files: Callable[[], Mapping[str, bool]] = dict) -> None:
        """Look at the sources. To be called before they are read the first time, so that no change is missed.

        `files`: the model files that presets name, and whether the last reading found them.
        """
        self._places = places
        self._files = files
        self._read_with: Mapping[str, bool] = {}
        """The presence of model files at the last attempt to read the sources, which may have failed."""
        self._known = survey(places)
        self._next_look = 0.0
        self._has_warned = False
        self._warn_of_size(self._known.cut_off)

    async def watch(self, reload: Reload) -> None:
        """Call `reload` at each change, until cancelled."""
        while True:
            try:
                await self._follow_events(reload)
            except (OSError, RuntimeError) as error:  # too many watches, or the file system cannot be watched
                self._warn(error)
                await self._poll_only(reload)

    async def _follow_events(self, reload: Reload) -> None:
        """Return after a change, since the folders may be others. Raises OSError or RuntimeError if watching fails."""
        folders = [folder for folder in self._known.folders if is_utf8(folder)]  # `watchfiles` accepts no others
        if not folders:
            await self._poll_only(reload)
            return
        events = awatch(
            *folders,
            watch_filter=None,
            recursive=False,
            step=int(SETTLE_S * 1000),
            rust_timeout=int(POLL_S * 1000),
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        async with contextlib.aclosing(events):
            async for _ in events:
                if await self._look(reload):
                    return

    async def _poll_only(self, reload: Reload) -> None:
        """Compare without events for some time, or until there is a change."""
        end, is_changed = time.monotonic() + RETRY_S, False
        while not is_changed and time.monotonic() < end:
            await asyncio.sleep(POLL_S)
            is_changed = await self._look(reload)

    async def _look(self, reload: Reload) -> bool:
        """Compare, and call `reload` after a change. Return True if there was one.

        Do nothing if comparisons have used too much time just now.
        """
        if time.monotonic() < self._next_look:
            return False
        is_outdated, present, seconds = await asyncio.to_thread(_timed_comparison, self._known, self._files())
        self._next_look = time.monotonic() + seconds / POLL_SHARE
        has_moved = present not in (self._files(), self._read_with)
        if not (is_outdated or has_moved):
            return False
        self._read_with = present
        before, self._known = self._known, await self._settled()
        if new := self._known.cut_off - before.cut_off:
            self._warn_of_size(new)
        if has_moved or before.stamps != self._known.stamps:
            await _logged(reload)
        return True

    async def _settled(self) -> Survey:
        """Return the state of the sources when they have not changed for a moment, or at the latest after a time."""
        deadline = time.monotonic() + LONGEST_SETTLE_S
        latest = await asyncio.to_thread(survey, self._places)
        while time.monotonic() < deadline:
            await asyncio.sleep(SETTLE_S)
            before, latest = latest, await asyncio.to_thread(survey, self._places)
            if latest.stamps == before.stamps:
                break
        return latest

    def _warn_of_size(self, roots: frozenset[str]) -> None:
        for root in roots:
            log.warning("%s has very many folders: changes are noticed only in %d of them", root, MAX_FOLDERS)

    def _warn(self, error: Exception) -> None:
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        log.log(
            level,
            "changes of the model sources cannot be watched, so their metadata is compared every %g s: %s",
            POLL_S,
            error,
        )


async def reload_presets(read_presets: ReadPresets, lifecycle: Lifecycle) -> None:
    """Read the sources again. If one cannot be read, log the error with its line and change nothing."""
    try:
        await reload_sources(read_presets, lifecycle)
    except ConfigError as error:
        log.error("%s; the old presets are kept", error)


def _timed_comparison(known: Survey, files: Iterable[str]) -> tuple[bool, Mapping[str, bool], float]:
    """Return whether the survey is outdated, which files exist, and the processor time that this took in seconds."""
    began = time.thread_time()
    present = {path: os.path.exists(path) for path in files}
    return known.is_outdated, present, time.thread_time() - began


async def _logged(reload: Reload) -> None:
    """Call it. An error must not end the watch, nor be taken for one of `watchfiles`."""
    try:
        await reload()
    except Exception:
        log.exception("the model sources could not be read again")
