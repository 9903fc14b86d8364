"""The error formats of the dialects: status, body, and the last event of a stream.

`application` and the router's proxy choose the format with `envelope_of`; the worker's dialects know their own. The
errors themselves are in `errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from msgspec import Struct

from ..base.errors import ApiError
from .anthropic import anthropic_error, anthropic_status, speaks_anthropic
from .ollama import ollama_error, ollama_status, speaks_ollama


class Envelope(Struct, frozen=True):
    status: Callable[[ApiError], int]
    body: Callable[[ApiError], dict[str, Any]]
    in_stream: tuple[bytes, bytes] = (b"data: ", b"\n\n")
    """Text before and after the body if the error ends a stream."""


OPENAI = Envelope(lambda error: error.status, lambda error: {"error": error.body()})
"""Also the format of llama-server's own endpoints."""
ANTHROPIC = Envelope(anthropic_status, anthropic_error, (b"event: error\ndata: ", b"\n\n"))
OLLAMA = Envelope(ollama_status, ollama_error, (b"", b"\n"))


def envelope_of(request: web.Request) -> Envelope:
    if speaks_ollama(request):
        return OLLAMA
    return ANTHROPIC if speaks_anthropic(request) else OPENAI
