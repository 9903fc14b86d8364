"""Decides which web pages may change something on this server. Pure; `application` asks before a handler runs.

CORS only prevents a page from reading the answer: a simple request, such as a POST of text/plain, arrives from any page
on the web. It also arrives from a page whose host name was pointed at this machine (DNS rebinding). While no API key is
required, both are refused before they change anything. Requests that only generate follow --cors-origins instead.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from ..base.errors import ApiError
from .auth import ANY_ORIGIN, LOCAL_HOSTS, chosen_origins, comparable_origin, origin_policy

if TYPE_CHECKING:
    from ..base.common_settings import ServerSettings

PRIVATE_SUFFIXES = (
    *(".localhost", ".localdomain", ".local", ".internal", ".lan", ".home", ".home.arpa", ".corp", ".svc", ".test"),
)
"""Suffixes of host names that cannot be registered."""
THIS_MACHINE = ".localhost"
"""Browsers resolve names with this suffix to the loopback address."""
PROGRAM_SCHEMES = ("app://", "tauri://", "vscode-webview://", "vscode-file://")
"""Beginnings of the origins of the pages that desktop programs contain. A page of the web cannot have them."""
DEFAULT_PORTS = {"http": 80, "https": 443}
ANY_HOST = "*"
"""In --allowed-hosts: all names."""
SITE = "Sec-Fetch-Site"
"""Header in which a browser says how the page is related to this server."""
READING = (hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS)
"""Methods that usually change nothing. A handler of a GET that changes something calls `refuse_foreign_page`."""

INFERENCE = frozenset(
    (
        *("/completion", "/completions", "/v1/completions", "/chat/completions", "/v1/chat/completions"),
        *("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens", "/v1/chat/completions/control"),
        *("/responses", "/v1/responses", "/responses/input_tokens", "/v1/responses/input_tokens"),
        *("/v1/messages", "/v1/messages/count_tokens", "/v1/streams/lookup"),
        *("/infill", "/embedding", "/embeddings", "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template"),
        *("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"),
        *("/audio/transcriptions", "/v1/audio/transcriptions"),
        *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"),
        *("/tts", "/v1/audio/speech", "/v1/systemone"),  # known, but not supported
    )
)
"""Routes whose POST any page of an allowed origin may send, as with llama-server. All others are for own pages."""
ENDING = frozenset(
    ("/v1/stream", "/responses/{id}", "/v1/responses/{id}", "/responses/{id}/cancel", "/v1/responses/{id}/cancel")
)
"""Routes that end or delete an answer whose id the page knows. They are also for the pages that this server serves
under a public name, which may generate."""


class ForeignPage(ApiError):
    status = 403
    type = "permission_error"


Check = Callable[[web.Request], None]
"""Function of a request that raises ForeignPage."""
CHECK_PAGE: web.AppKey[Check] = web.AppKey("check_page")
"""For routes that change something, whatever their method."""


def refuse_foreign_page(request: web.Request) -> None:
    """Raise ForeignPage unless the sender of a request may change something. For GET routes that do."""
    request.app[CHECK_PAGE](request)


class PagePolicy:
    """Which pages may do what while no key is required."""

    def __init__(self, settings: ServerSettings) -> None:
        chosen = chosen_origins(settings) if "cors_origins" in settings.options_set else set()
        named = {name.lower().rstrip(".") for name in settings.http.allowed_hosts}
        self._allows_all = ANY_ORIGIN in chosen
        self._origins = chosen
        self._named = named
        self._names = {*named, *(name.lower() for name in settings.http.host), socket.gethostname().lower()}
        self._suffixes = (*PRIVATE_SUFFIXES, *(name for name in named if name.startswith(".")))
        self._allows_any_host = ANY_HOST in named
        self._may_read = origin_policy(settings)

    def check_change(self, origin: str | None, site: str | None, host: str | None) -> None:
        """Raise ForeignPage unless a request with these `Origin`, `Sec-Fetch-Site` and `Host` may change something.

        A program that is not a browser sends neither of the first two.
        """
        if self._allows_all or (origin is not None and comparable_origin(origin) in self._origins):
            return
        if origin is not None and not self._is_own_page(origin, host):
            raise ForeignPage(
                f"pages of {origin} may not use this: name it in --cors-origins, or require a key (--api-key)"
            )
        if origin is None and _is_of_another_page(site, host):
            raise ForeignPage(
                "pages of other sites may not use this: name them in --cors-origins, or require a key (--api-key)"
            )
        if not self._is_ours(_name(f"//{host}")):
            raise ForeignPage(
                f"any page could use the host name {host} for this machine: "
                "name it in --allowed-hosts, or require a key (--api-key)"
            )

    def check_ending(self, origin: str | None, site: str | None, host: str | None) -> None:
        """Like `check_change`, but a page that this server served under any name may do it."""
        if origin is None or not _is_served_as(host, origin):
            self.check_change(origin, site, host)

    def check_inference(self, origin: str | None, host: str | None) -> None:
        """Raise ForeignPage for a page that --cors-origins does not allow."""
        if origin is None or self._may_read(origin) is not None or self._is_own_page(origin, host):
            return
        raise ForeignPage(f"pages of {origin} may not use this: name it in --cors-origins")

    def _is_own_page(self, origin: str, host: str | None) -> bool:
        """Return True for a page of this machine or of a program on it, or a page that this server itself served."""
        name = _name(origin)
        if name in LOCAL_HOSTS or name in self._named or name.endswith(THIS_MACHINE):
            return True
        if name and origin.lower().startswith(PROGRAM_SCHEMES):
            return True
        return _is_served_as(host, origin) and self._is_ours(name)

    def _is_ours(self, name: str) -> bool:
        """Return True for an IP address, a name that cannot be registered in the public DNS, or an allowed name."""
        if self._allows_any_host or not name or "." not in name or name in self._names:
            return True
        if name.endswith(self._suffixes):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _is_of_another_page(site: str | None, host: str | None) -> bool:
    """Return True if a browser says that a page of another origin sent the request, which has no `Origin`."""
    if site == "same-site":  # another port of this machine, or a neighbour in the same domain
        return _name(f"//{host}") not in LOCAL_HOSTS
    return site == "cross-site"


def page_check(settings: ServerSettings) -> tuple[Check, Check]:
    """Return two checks: the one of all requests before their handler, and the one of routes that change something."""
    policy = PagePolicy(settings)
    prefix = settings.http.api_prefix or ""

    def check_change(request: web.Request) -> None:
        policy.check_change(*_sender(request))

    def check(request: web.Request) -> None:
        match = request.match_info
        if request.method in READING or match.http_exception is not None:  # no route: nothing can change
            return
        resource = match.route.resource
        path = resource.canonical.removeprefix(prefix) if resource is not None else ""
        origin, site, host = _sender(request)
        if path in INFERENCE:
            policy.check_inference(origin, host)
        elif path in ENDING:
            policy.check_ending(origin, site, host)
        else:
            policy.check_change(origin, site, host)

    return check, check_change


def _is_served_as(host: str | None, origin: str) -> bool:
    """Return True if a page's origin has the host and port of the `Host` header."""
    scheme, separator, _ = origin.partition("://")
    if not separator or not host:
        return False
    try:
        page, server = urlsplit(origin), urlsplit(f"{scheme}://{host}")
        default = DEFAULT_PORTS.get(page.scheme)
        return (page.hostname, page.port or default) == (server.hostname, server.port or default)
    except ValueError:  # an invalid address or port
        return False


def _sender(request: web.Request) -> tuple[str | None, str | None, str | None]:
    headers = request.headers
    return headers.get(hdrs.ORIGIN), headers.get(SITE), headers.get(hdrs.HOST)


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return url
