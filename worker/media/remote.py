"""Fetches files from http(s) URLs, with limits on size, time and address.

Each redirect is a separate request with the same checks. The address is checked when a socket is about to connect to
it, not when the name is resolved: so DNS rebinding does not bypass the check. No proxy is used, because it would choose
the address itself.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from functools import cache
from typing import Any

import aiohttp
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.base.version import BUILD_INFO
from yarl import URL

from .addresses import AllowedHosts

log = logging.getLogger("corral.worker")

MAX_BYTES = 10 << 20
"""Limit for one file; the same as in llama-server."""
TIMEOUT_S = 10.0
"""Limit for one file with all its redirects; the same as in llama-server."""
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 64 << 10
_HEADERS = {"User-Agent": f"llama-corral/{BUILD_INFO}", "Accept": "*/*", "Accept-Encoding": "identity"}
"""`identity`: decompressing a response could exceed any size limit in one step."""


class _Refused(OSError):
    """A connection to an address that is not allowed."""


def is_remote(address: str) -> bool:
    return address[:8].lower().startswith(("http://", "https://"))


async def fetch(address: str, allowed: AllowedHosts, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """Fetch the file. Raises InvalidRequest, which names the host but not the whole URL: that may contain a secret."""
    url = _parse(address)
    try:
        async with asyncio.timeout(timeout_s):
            for _ in range(MAX_REDIRECTS + 1):
                answer = await _get(url, allowed)
                if isinstance(answer, bytes):
                    return answer
                url = answer
    except TimeoutError:
        raise _failed(url, f"it timed out after {timeout_s:g} s") from None
    raise _failed(url, f"more than {MAX_REDIRECTS} redirects")


async def _get(url: URL, allowed: AllowedHosts) -> bytes | URL:
    """Return the file, or the URL that the server redirects to."""
    host = url.host or ""
    trusted = allowed.allows_host(host, url.port or 0)

    def open_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not trusted and not allowed.allows_address(str(address[0])):
            raise _Refused(f"{address[0]} is not a public address")
        return socket.socket(family, kind, protocol)

    tls = _tls() if url.scheme == "https" else True
    connector = aiohttp.TCPConnector(ssl=tls, socket_factory=open_socket, force_close=True)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector, headers=_HEADERS, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            log.debug("fetching media from %s: %d", host, response.status)
            return await _read(url, response)
    except aiohttp.ClientSSLError:
        raise _failed(url, "its certificate cannot be verified, or it does not speak TLS") from None
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, _Refused) or "not a public address" in str(error.os_error):
            raise _failed(url, "it is not a public address, and --media-private-hosts does not name it") from None
        raise _failed(url, error.os_error.strerror or "it cannot be reached") from None
    except aiohttp.InvalidURL:
        raise _failed(url, "the host name is invalid") from None
    except (aiohttp.ClientError, ValueError) as error:
        raise _failed(url, f"{type(error).__name__}") from None


async def _read(url: URL, response: aiohttp.ClientResponse) -> bytes | URL:
    if response.status in _REDIRECTS:
        return _redirected(url, response.headers.get("Location", ""))
    if not 200 <= response.status < 300:
        raise _failed(url, f"it answered with {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _failed(url, "its answer is compressed, although the request allows none")
    if (response.content_length or 0) > MAX_BYTES:
        raise _too_large(url)
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(_CHUNK):
        size += len(chunk)
        if size > MAX_BYTES:
            raise _too_large(url)
        chunks.append(chunk)
    if not size:
        raise _failed(url, "its answer is empty")
    return b"".join(chunks)


def _redirected(url: URL, location: str) -> URL:
    try:
        target = url.join(_read_url(location))
    except ValueError:
        raise _failed(url, "it redirects to an invalid URL") from None
    if not location or target.scheme not in ("http", "https") or not target.host:
        raise _failed(url, "it redirects to a URL that is not http(s)")
    return target


def _parse(address: str) -> URL:
    try:
        url = _read_url(address)
        if url.host and url.port:
            return url
    except ValueError:
        pass
    raise InvalidRequest("Failed to download image: its URL cannot be parsed")


def _read_url(text: str) -> URL:
    """Parse a URL. Text that is already encoded is not changed: signatures cover every character."""
    return URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


def _too_large(url: URL) -> InvalidRequest:
    return _failed(url, f"it is larger than {MAX_BYTES >> 20} MiB")


def _failed(url: URL, why: str) -> InvalidRequest:
    return InvalidRequest(f"Failed to download image from {url.host}: {why}")


@cache
def _tls() -> ssl.SSLContext:
    """Return a TLS context with the same trusted certificates as our model downloads."""
    import httpx

    return httpx.create_ssl_context()
