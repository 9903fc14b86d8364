"""Access control: API keys, and the origins that browsers may call from. `application` uses it for every request."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from ..base.errors import ConfigError
from ..base.user_files import read_text_of

if TYPE_CHECKING:
    from ..base.common_settings import ListenSettings, ServerSettings

log = logging.getLogger("corral.http")

ANY_ORIGIN = "*"
KEYS_ENV = "LLAMA_CORRAL_HAS_KEYS"
"""Set for the workers of a router that requires API keys. It has checked the key of each request that it forwards.

Fixed at the router's start: for one that got its first key later, workers share their slots between requests only.
"""
HAS_KEYS: web.AppKey[Callable[[], bool]] = web.AppKey("has_keys")
"""Returns True if the application requires an API key."""
LOCAL = "localhost"
"""In --cors-origins: all pages of this machine."""
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


def read_api_keys(settings: ListenSettings, *, may_wait: bool) -> tuple[str, ...]:
    """Return the keys of `--api-key` (comma list) and `--api-key-file` (one per line, `#` starts a comment line).

    `may_wait`: the file may be a pipe, whose end is waited for. A pipe gives its keys only once, so a process may use
    True only once; `ApiKeys` does. Raise ConfigError.
    """
    keys = [key.get_secret_value() for key in settings.http.api_key]
    if settings.http.api_key_file:
        lines = read_text_of("--api-key-file", settings.http.api_key_file, may_wait=may_wait).splitlines()
        keys += [line for line in lines if not line.lstrip().startswith("#")]
    return tuple(dict.fromkeys(key.strip() for key in keys if key.strip()))


class Keys:
    """The valid API keys. Compares in constant time: always with every key, and only digests of equal length."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [self._digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, request: web.Request) -> bool:
        digest = hashlib.sha256(given_key(request)).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    @staticmethod
    def _digest(key: str) -> bytes:
        return hashlib.sha256(_encoded(key)).digest()


def given_key(request: web.Request) -> bytes:
    """Return the API key that a request gives, valid or not; empty if it gives none."""
    given = request.headers.get(hdrs.AUTHORIZATION) or request.headers.get("X-Api-Key") or ""
    return _encoded(given[7:] if given[:7].lower() == "bearer " else given)


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


class ApiKeys:
    """The keys of the settings, which can be read again. True if there are any."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises ConfigError if `--api-key-file` cannot be read."""
        self._settings = settings
        self._given = read_api_keys(settings, may_wait=True)
        self._keys = Keys(self._given)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, request: web.Request) -> bool:
        return self._keys.admit(request)

    def read_again(self) -> None:
        """Read `--api-key-file` again. If it cannot be read, or no key is left, log that and keep the old keys.

        A server that requires a key never stops requiring one. May be called from any thread.
        """
        try:
            keys = read_api_keys(self._settings, may_wait=False)
        except ConfigError as error:
            log.error("%s; the old API keys are kept", error)
            return
        if self._given and not keys:
            log.error("--api-key-file %s: contains no key; the old API keys are kept", self._settings.http.api_key_file)
        elif keys != self._given:
            self._given, self._keys = keys, Keys(keys)
            log.info("the API keys were read again: %d keys", len(keys))


def origin_policy(settings: ServerSettings) -> Callable[[str | None], str | None]:
    """Return a function from a request's `Origin` to the value of `Access-Control-Allow-Origin`; None: no header.

    Browsers accept only one origin, so of a list the one that matches is returned, and no other page learns the list.
    """
    origins = chosen_origins(settings)
    if _exposes_machine(settings) and "cors_origins" not in settings.options_set:
        origins = {LOCAL}
    if ANY_ORIGIN in origins:
        return (lambda origin: origin or None) if settings.http.cors_credentials else (lambda origin: ANY_ORIGIN)

    def allowed(origin: str | None) -> str | None:
        if not origin:
            return None
        is_local = LOCAL in origins and _host_of(origin) in LOCAL_HOSTS
        return origin if is_local or comparable_origin(origin) in origins else None

    return allowed


def chosen_origins(settings: ServerSettings) -> set[str]:
    """Return the origins of --cors-origins, in a form that can be compared."""
    return {comparable_origin(origin) for origin in settings.http.cors_origins.split(",")} - {""}


def comparable_origin(origin: str) -> str:
    """Return an origin as browsers write it: in lower case and without a slash at the end."""
    return origin.strip().lower().rstrip("/")


def _exposes_machine(settings: ServerSettings) -> bool:
    """Return True if callers get more access to this machine than requests to a model."""
    tools = settings.endpoints
    return bool(tools.tools or tools.mcp_servers_config or tools.mcp_servers_json or settings.http.ui_mcp_proxy)


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None
