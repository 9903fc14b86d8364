"""Loads the bytes of files that a request contains or names: from the request, over http(s), or from disk.

There is one `MediaLoader` per worker; it fetches the remote `MediaSource`s of a request concurrently. It does not
interpret the contents of the files: the projector does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Literal

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.hub.client import endpoint
from llama_corral.presets.options.settings import Settings
from msgspec import Struct

from .addresses import AllowedHosts, read_allowed
from .encoded import decode_base64, decode_data_url, is_data_url
from .local import SCHEME, MediaDirectory
from .remote import fetch, is_remote

Kind = Literal["image", "audio", "video"]

AT_ONCE = 4
"""Number of files of one request that are fetched concurrently."""
TOTAL_TIMEOUT_S = 60.0
"""Limit for all files of one request; each single file has a shorter limit."""
OFF_LOOP_CHARACTERS = 64 << 10
"""Files with more characters of base64 together are decoded on another thread."""
_LONGEST_SCHEME = 32


class MediaSource(Struct, frozen=True):
    """A file to load. `address`: a URL (`http:`, `https:`, `data:`, `file:`), or the file itself in base64."""

    kind: Kind
    address: str


class MediaLoader:
    def __init__(self, directory: MediaDirectory, allowed: AllowedHosts, max_bytes: int) -> None:
        """`max_bytes`: limit for the total size of all files of one request."""
        self._directory = directory
        self._allowed = allowed
        self._max_bytes = max_bytes

    async def load(self, sources: Sequence[MediaSource]) -> list[bytes]:
        """Return the files' bytes in the order of `sources`. Raises InvalidRequest for the first file that fails."""
        files = _LoadedFiles(len(sources), self._max_bytes)
        together = asyncio.Semaphore(AT_ONCE)

        async def fetch_one(place: int, address: str) -> None:
            async with together:
                data = await fetch(address, self._allowed)
            files.keep(place, data)

        remote = [(place, source.address) for place, source in enumerate(sources) if is_remote(source.address)]
        others = [(place, source.address) for place, source in enumerate(sources) if not is_remote(source.address)]
        tasks = [asyncio.ensure_future(fetch_one(*source)) for source in remote]
        tasks.append(asyncio.ensure_future(self._read_all(others, files)))
        try:
            async with asyncio.timeout(TOTAL_TIMEOUT_S):
                await asyncio.gather(*tasks)
        except TimeoutError:
            raise InvalidRequest(f"loading the request's files timed out after {TOTAL_TIMEOUT_S:g} s") from None
        finally:
            files.stopped = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return files.loaded

    async def _read_all(self, sources: Sequence[tuple[int, str]], files: _LoadedFiles) -> None:
        """Read files from the request and from disk. A task for each of thousands would delay other requests."""

        def work() -> None:
            for place, address in sources:
                if files.stopped:
                    return
                files.keep(place, self._read(address))

        on_disk = any(address.startswith(SCHEME) for _, address in sources)
        if on_disk or sum(len(address) for _, address in sources) >= OFF_LOOP_CHARACTERS:
            await asyncio.to_thread(work)
        else:
            work()

    def _read(self, address: str) -> bytes:
        if address.startswith(SCHEME):
            return self._directory.read(address)
        if "://" in address[:_LONGEST_SCHEME]:
            raise InvalidRequest("the URL of a file must begin with http://, https://, file:// or data:")
        return decode_data_url(address) if is_data_url(address) else decode_base64(address)


class _LoadedFiles:
    """The files of one request; `keep` may be called from any thread."""

    def __init__(self, n_files: int, max_bytes: int) -> None:
        self.loaded = [b""] * n_files
        self.stopped = False
        self._left = self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def keep(self, place: int, data: bytes) -> None:
        """Raises InvalidRequest if all files together are too large."""
        with self._lock:
            self._left -= len(data)
            if self._left < 0:
                raise InvalidRequest(f"the files of the request are larger than {self._max_bytes} bytes in total")
            self.loaded[place] = data


def media_loader(settings: Settings, environ: Mapping[str, str]) -> MediaLoader:
    """Return the worker's media loader. The operator's own model hub is an allowed host. Raises ConfigError."""
    allowed = read_allowed(settings.media.media_private_hosts, endpoint(environ))
    return MediaLoader(
        MediaDirectory(settings.endpoints.media_path, settings.corral.max_body), allowed, settings.corral.max_body
    )
