"""`/cors-proxy`: requests `?url=` for a page whose browser does not allow that, for example for an MCP server.

Only the body and the headers named `x-llama-server-proxy-header-NAME` are forwarded, so API keys and cookies are not.
Headers of the answer that would affect this server's origin are removed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, hdrs, web
from multidict import CIMultiDict
from yarl import URL

from ..base.errors import InvalidRequest, WorkerGone
from ..web.request_body import read_body

log = logging.getLogger("corral.tools")

PREFIX = "x-llama-server-proxy-header-"
SILENCE_S = 600.0
"""Read timeout, since tools on the other side may be slow; llama-server's value."""
CONNECT_S = 60.0
MAX_REDIRECTS = 10
HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "upgrade", "te", "trailer", "transfer-encoding", "content-length"),
        *("proxy-authenticate", "proxy-authorization"),
    )
)
"""Headers that are valid for one connection only."""
NOT_SENT = HOP_BY_HOP | {"host", "accept-encoding"}
NOT_RETURNED = HOP_BY_HOP | {"server", "date", "set-cookie", "clear-site-data", "strict-transport-security"}
CONTAINED = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}
"""Added to answers, because they come from our address: a page or script in them must not count as ours."""


class CorsProxy:
    """The handler for `/cors-proxy`. `session` must be added to the application's `cleanup_ctx`."""

    def __init__(self) -> None:
        self._session: ClientSession | None = None

    async def session(self, _: web.Application) -> AsyncIterator[None]:
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        skipped = (hdrs.USER_AGENT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)
        async with ClientSession(
            timeout=timeout,
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=skipped,
            cookie_jar=DummyCookieJar(),
        ) as self._session:
            yield

    async def forward(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        target = target_of(request.query.get("url", ""))
        body = await read_body(request)
        log.info("proxying %s to %s", request.method, target.origin())
        try:
            async with self._session.request(
                request.method, target, headers=sent_headers(request), data=body or None, max_redirects=MAX_REDIRECTS
            ) as answer:
                response = web.StreamResponse(status=answer.status, headers=returned_headers(answer.headers))
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                return response
        except (ClientError, TimeoutError, ValueError) as error:
            raise WorkerGone(f"proxy error: {error or type(error).__name__}") from None


def target_of(text: str) -> URL:
    """Parse and check the target URL. Raise InvalidRequest."""
    try:
        url = URL(text)
        port = url.port
    except ValueError as error:
        raise InvalidRequest(f"invalid target URL: {error}") from None
    if url.scheme not in ("http", "https"):
        raise InvalidRequest(f"unsupported URL scheme in target URL: '{url.scheme}' (expected http or https)")
    if not url.host or port is None:
        raise InvalidRequest("invalid target URL: missing host")
    if not url.host.isprintable() or " " in url.host:
        raise InvalidRequest(f"invalid target URL: {url.host!r} is not a valid host name")
    if url.user or url.password:
        raise InvalidRequest("authentication in target URL is not supported")
    return url


def sent_headers(request: web.Request) -> CIMultiDict[str]:
    named = ((name[len(PREFIX) :], value) for name, value in request.headers.items() if _is_named(name))
    return CIMultiDict((name, value) for name, value in named if name and name.lower() not in NOT_SENT)


def _is_named(name: str) -> bool:
    return name.lower().startswith(PREFIX)


def returned_headers(given: Mapping[str, str]) -> CIMultiDict[str]:
    returned = CIMultiDict(
        (name, value)
        for name, value in given.items()
        if name.lower() not in NOT_RETURNED and not name.lower().startswith("access-control-")
    )
    for name, value in CONTAINED.items():
        returned[name] = value
    return returned
