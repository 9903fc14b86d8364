"""Which pages a browser may call tools from. Pure; asked by `routes` before a tool or the proxy is reached.

CORS only keeps a page from reading the answer: the call itself arrives, from any page on the web, and so does that of
a page whose own name suddenly leads to this machine. Where no key is asked for, both are refused here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..base.errors import ApiError
from ..web.auth import LOCAL_HOSTS, read_api_keys

if TYPE_CHECKING:
    from ..base.common_settings import CommonSettings

PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Names that nobody can register."""


class ForeignPage(ApiError):
    status = 403
    type = "permission_error"


Check = Callable[[str | None, str | None], None]
"""Told a request's `Origin` and `Host`; raises ForeignPage."""


def page_check(settings: CommonSettings) -> Check | None:
    """None: nothing is to be checked, for a key is, or the operator lets any page in."""
    is_chosen = "cors_origins" in settings.model_fields_set
    chosen = [origin.strip() for origin in settings.cors_origins.split(",")] if is_chosen else []
    if read_api_keys(settings) or "*" in chosen:
        return None

    def check(origin: str | None, host: str | None) -> None:
        if origin in chosen:
            return
        if origin is not None and not _is_own_page(origin, host):
            raise ForeignPage(
                f"pages of {origin} may not use this: name it in --cors-origins, or ask for a key (--api-key)"
            )
        if not _is_private(_name(f"//{host}")):
            raise ForeignPage(f"{host} could be anybody's name for this machine: ask for a key (--api-key)")

    return check


def _is_own_page(origin: str, host: str | None) -> bool:
    """A page of this machine, or one that this server itself gave out."""
    name = _name(origin)
    return name in LOCAL_HOSTS or (host is not None and origin.partition("://")[2] == host and _is_private(name))


def _is_private(name: str) -> bool:
    """No name that leads here today and there tomorrow."""
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
