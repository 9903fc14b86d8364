"""A refusal in the words of the client's dialect: status, body, and the last words of a stream that has begun.

`application` and the router's proxy ask `envelope_of` for the request's; the worker's dialects know their own. What
goes wrong is in `errors`, here is only how it is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ..base.errors import ApiError
from .anthropic import anthropic_error, anthropic_status, speaks_anthropic
from .ollama import ollama_error, ollama_status, speaks_ollama


@dataclass(frozen=True, slots=True)
class Envelope:
    status: Callable[[ApiError], int]
    body: Callable[[ApiError], dict[str, Any]]
    in_stream: tuple[bytes, bytes] = (b"data: ", b"\n\n")
    """What stands around the body when it ends a stream."""


OPENAI = Envelope(lambda error: error.status, lambda error: {"error": error.body()})
"""llama-server's too, for all of its own endpoints."""
ANTHROPIC = Envelope(anthropic_status, anthropic_error, (b"event: error\ndata: ", b"\n\n"))
OLLAMA = Envelope(ollama_status, ollama_error, (b"", b"\n"))


def envelope_of(request: web.Request) -> Envelope:
    if speaks_ollama(request):
        return OLLAMA
    return ANTHROPIC if speaks_anthropic(request) else OPENAI
