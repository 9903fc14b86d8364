"""Loads the bytes of files that a request contains or names: from the request, over http(s), or from disk.

There is one `MediaLoader` per worker; it loads all `MediaSource`s of a request concurrently. It does not interpret the
contents of the files: the projector does.
"""

from __future__ import annotations

import asyncio
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
"""Number of files of one request that are loaded concurrently."""
TOTAL_TIMEOUT_S = 60.0
"""Limit for all files of one request; each single file has a shorter limit."""
OFF_LOOP_CHARACTERS = 64 << 10
"""Longer base64 is decoded on another thread."""
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
        together = asyncio.Semaphore(AT_ONCE)
        left = self._max_bytes

        async def load_one(source: MediaSource) -> bytes:
            nonlocal left
            async with together:
                data = await self._load(source.address)
            left -= len(data)
            if left < 0:
                raise InvalidRequest(f"the files of the request are larger than {self._max_bytes} bytes in total")
            return data

        tasks = [asyncio.ensure_future(load_one(source)) for source in sources]
        try:
            async with asyncio.timeout(TOTAL_TIMEOUT_S):
                return list(await asyncio.gather(*tasks))
        except TimeoutError:
            raise InvalidRequest(f"loading the request's files timed out after {TOTAL_TIMEOUT_S:g} s") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, address: str) -> bytes:
        if is_remote(address):
            return await fetch(address, self._allowed)
        if address.startswith(SCHEME):
            return await asyncio.to_thread(self._directory.read, address)
        if "://" in address[:_LONGEST_SCHEME]:
            raise InvalidRequest("the URL of a file must begin with http://, https://, file:// or data:")
        decode = decode_data_url if is_data_url(address) else decode_base64
        if len(address) < OFF_LOOP_CHARACTERS:
            return decode(address)
        return await asyncio.to_thread(decode, address)


def media_loader(settings: Settings, environ: Mapping[str, str]) -> MediaLoader:
    """Return the worker's media loader. The operator's own model hub is an allowed host. Raises ConfigError."""
    allowed = read_allowed(settings.media.media_private_hosts, endpoint(environ))
    return MediaLoader(
        MediaDirectory(settings.endpoints.media_path, settings.corral.max_body), allowed, settings.corral.max_body
    )
