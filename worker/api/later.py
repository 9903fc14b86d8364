"""Endpoints that are off unless a flag switches them on, which is refused so far.

Clients expect another answer for that than for one that is misspelt.
"""

from __future__ import annotations

from aiohttp import web

from ...presets.errors import FeatureDisabled
from ...presets.web import Route


async def refuse_disabled(request: web.Request) -> web.StreamResponse:
    raise FeatureDisabled


ROUTES: list[Route] = [
    (method, path, refuse_disabled) for path in ("/tools", "/cors-proxy") for method in ("GET", "POST")
]
