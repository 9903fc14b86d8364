"""The interface of all dialects, and the data that a dialect needs to render a request's results.

There is one `AnswerInfo` per request. A dialect is pure: it converts results to JSON or to the bytes of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time
from typing import Protocol

from llama_corral.common.base.errors import ApiError
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import EVENT_STREAM_TYPE, error_event
from msgspec import Struct, field

from ...engine.messages import Begun, Finished, Piece, Progress
from ..request.params import CompletionParams
from .results import random_id


class AnswerInfo(Struct, frozen=True):
    params: CompletionParams
    model: str  # the server's name for its model, which the request's name may differ from
    build: str
    prompts: Sequence[Sequence[int]]
    detokenize: Callable[[Sequence[int]], str]
    count_tokens: Callable[[str], int]
    id: str = field(default_factory=lambda: random_id("chatcmpl-"))
    created: int = field(default_factory=lambda: int(time()))

    def prompt_text(self, index: int) -> str:
        """Return the prompt of choice `index` as text, including special tokens."""
        return self.detokenize(self.prompts[index // self.params.n])


class Dialect(Protocol):
    """Renders the results. `index` counts the choices of all prompts: prompt 0's `n` choices, then prompt 1's …"""

    content_type: str
    """The content type of a stream."""
    ping: bytes
    """Sent while there are no events, so that the connection does not time out; empty if the format has no pings."""

    def full_body(self, results: Sequence[Finished]) -> object:
        """Return the body of an answer that is not streamed; `results` are in the order of their indexes."""

    def begun(self, index: int, event: Begun) -> bytes: ...

    def progress(self, index: int, event: Progress) -> bytes: ...

    def piece(self, index: int, event: Piece) -> bytes: ...

    def finished(self, index: int, event: Finished) -> bytes: ...

    def end(self) -> bytes:
        """Return the end of a stream whose choices have all finished."""

    def failed(self, error: ApiError) -> bytes:
        """Return the end of a stream that has begun and failed."""


class EventStream:
    """Base class of the dialects whose streams are server-sent events, as in OpenAI's API and llama-server."""

    content_type = EVENT_STREAM_TYPE
    ping = b":\n\n"  # a comment

    def begun(self, index: int, event: Begun) -> bytes:
        return b""

    def failed(self, error: ApiError) -> bytes:
        return error_event(error)


DONE = b"data: [DONE]\n\n"


def sse(value: object) -> bytes:
    return b"data: %b\n\n" % encode_json(value)
