"""Decides which web pages may call tools. Pure; `routes` calls it before a tool or the proxy.

CORS only prevents a page from reading the answer: the call itself arrives from any page on the web. It also arrives
from a page whose host name was pointed at this machine (DNS rebinding). If no API key is required, both are refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..base.errors import ApiError
from ..web.auth import ANY_ORIGIN, LOCAL_HOSTS, chosen_origins, comparable_origin, read_api_keys

if TYPE_CHECKING:
    from ..base.common_settings import ServerSettings

PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Suffixes of host names that cannot be registered."""


class ForeignPage(ApiError):
    status = 403
    type = "permission_error"


Check = Callable[[str | None, str | None], None]
"""Function of a request's `Origin` and `Host` that raises ForeignPage."""


def page_check(settings: ServerSettings) -> Check | None:
    """Return the check; None: not needed, because a key is required or the operator allows all pages."""
    chosen = chosen_origins(settings) if "cors_origins" in settings.options_set else set()
    if read_api_keys(settings) or ANY_ORIGIN in chosen:
        return None

    def check(origin: str | None, host: str | None) -> None:
        if origin is not None and comparable_origin(origin) in chosen:
            return
        if origin is not None and not _is_own_page(origin, host):
            raise ForeignPage(
                f"pages of {origin} may not use this: name it in --cors-origins, or require a key (--api-key)"
            )
        if not _is_private(_name(f"//{host}")):
            raise ForeignPage(f"any page could use the host name {host} for this machine: require a key (--api-key)")

    return check


def _is_own_page(origin: str, host: str | None) -> bool:
    """Return True for a page of this machine, or a page that this server itself served."""
    name = _name(origin)
    return name in LOCAL_HOSTS or (host is not None and origin.partition("://")[2] == host and _is_private(name))


def _is_private(name: str) -> bool:
    """Return True for an IP address or a host name that cannot be registered in the public DNS."""
    if not name or "." not in name or name.endswith(PRIVATE_SUFFIXES):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return url
