"""`/cors-proxy`: fetches `?url=` for a page that its browser does not let there, such as an MCP server over HTTP.

Of the request only the body and what is named by `x-llama-server-proxy-header-NAME` goes on, so that neither our key
nor a cookie does; of the answer nothing that would make it speak for us.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, hdrs, web
from multidict import CIMultiDict
from yarl import URL

from ..base.errors import InvalidRequest, WorkerGone
from ..web.application import read_body

log = logging.getLogger("corral.tools")

PREFIX = "x-llama-server-proxy-header-"
SILENCE_S = 600.0
"""As long as a tool on the other side may think; llama-server's."""
CONNECT_S = 60.0
MAX_REDIRECTS = 10
HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "upgrade", "te", "trailer", "transfer-encoding", "content-length"),
        *("proxy-authenticate", "proxy-authorization"),
    )
)
"""Between two neighbours only."""
NOT_SENT = HOP_BY_HOP | {"host", "accept-encoding"}
NOT_RETURNED = HOP_BY_HOP | {"server", "date", "set-cookie", "clear-site-data", "strict-transport-security"}
CONTAINED = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff", "X-Accel-Buffering": "no"}
"""It comes from our address: a page or script in it must not count as ours."""


class CorsProxy:
    """`session` is to be the application's cleanup context."""

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
    """Raises InvalidRequest."""
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
        raise InvalidRequest(f"invalid target URL: no host is named {url.host!r}")
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
