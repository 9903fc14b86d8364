"""What a dialect must know to put a request's results into its own words, and the interface that all dialects have.

One `AnswerInfo` a request. A dialect is pure: results in, JSON or bytes of an event stream out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Protocol

from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import EVENT_STREAM_TYPE, error_event

from ...engine.messages import Begun, Finished, Piece, Progress
from ..request.params import CompletionParams
from .results import random_id


@dataclass(frozen=True, slots=True)
class AnswerInfo:
    params: CompletionParams
    model: str  # the server's own name for its model, whatever the request called it
    build: str
    prompts: Sequence[Sequence[int]]
    detokenize: Callable[[Sequence[int]], str]
    count_tokens: Callable[[str], int]
    id: str = field(default_factory=lambda: random_id("chatcmpl-"))
    created: int = field(default_factory=lambda: int(time()))

    def prompt_text(self, index: int) -> str:
        """The prompt behind choice `index`, special tokens shown."""
        return self.detokenize(self.prompts[index // self.params.n])


class Dialect(Protocol):
    """`index` counts choices over all prompts of the request: prompt 0's `n` choices, then prompt 1's …"""

    content_type: str
    """Of a stream."""
    ping: bytes
    """Keeps a silent connection from being taken for dead; nothing where a stream has no room for it."""

    def full_body(self, results: Sequence[Finished]) -> object:
        """The body of an answer that is not streamed; `results` in the order of their indexes."""

    def begun(self, index: int, event: Begun) -> bytes: ...

    def progress(self, index: int, event: Progress) -> bytes: ...

    def piece(self, index: int, event: Piece) -> bytes: ...

    def finished(self, index: int, event: Finished) -> bytes: ...

    def end(self) -> bytes:
        """What ends a stream after the last choice has finished."""

    def failed(self, error: ApiError) -> bytes:
        """What ends a stream that has begun and cannot be completed."""


class EventStream:
    """What the dialects of OpenAI and llama.cpp share as streams of server-sent events."""

    content_type = EVENT_STREAM_TYPE
    ping = b":\n\n"  # a comment

    def begun(self, index: int, event: Begun) -> bytes:
        return b""

    def failed(self, error: ApiError) -> bytes:
        return error_event(error)


DONE = b"data: [DONE]\n\n"


def sse(value: object) -> bytes:
    return b"data: %b\n\n" % encode_json(value)
