"""Endpoints of llama-server that this worker knows but does not have: 501, so that nobody takes them for misspelt."""

from __future__ import annotations

from aiohttp import web

from ...presets.errors import FeatureDisabled, NotSupported
from ...presets.web import Route

PATHS = (
    ("POST", "/audio/transcriptions"),
    ("POST", "/v1/audio/transcriptions"),
)

DISABLED = (
    ("GET", "/tools"),
    ("POST", "/tools"),
    ("GET", "/cors-proxy"),
    ("POST", "/cors-proxy"),
)
"""Off unless a flag switches them on, which is refused so far: clients expect another answer for that."""


async def refuse(request: web.Request) -> web.StreamResponse:
    raise NotSupported(f"{request.path} is not supported yet")


async def refuse_disabled(request: web.Request) -> web.StreamResponse:
    raise FeatureDisabled


ROUTES: list[Route] = [
    *((method, path, refuse) for method, path in PATHS),
    *((method, path, refuse_disabled) for method, path in DISABLED),
]
