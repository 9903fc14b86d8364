"""Endpoints of newer versions of llama-server that this server knows but does not have. Each one says why.

Router and worker have the same routes, so a client learns that a feature is missing instead of a wrong path.
"""

from __future__ import annotations

from aiohttp import web

from ..base.errors import NotSupported
from .application import Handler, Route

_SPEECH = "speech output is not supported: this server writes text only"
_REASONS = {
    ("POST", "/tts"): _SPEECH,
    ("POST", "/v1/audio/speech"): _SPEECH,
    ("GET", "/v1/realtime"): 'realtime sessions are not supported: use /v1/chat/completions with "stream": true',
    ("POST", "/v1/systemone"): "decision models are not supported: use /v1/chat/completions with a JSON schema",
}


def _refusal(reason: str) -> Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise NotSupported(reason)

    return refuse


UNSUPPORTED: list[Route] = [(method, path, _refusal(reason)) for (method, path), reason in _REASONS.items()]
