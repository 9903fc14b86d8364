"""Begin a stream before its response, with comments while the model is queued, loads or has not sent a byte yet.

Proxies between client and router close connections that are silent for a minute. So a request for server-sent events
that waits too long gets the status 200 and then comments, which clients ignore; a later refusal becomes an error event.
Before that nothing is sent, so that a refusal can have its own status. `proxy` uses it and gives the comments' texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from aiohttp import web
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import CONVERSATION_HEADER, event_stream
from llama_corral.common.web.ollama import speaks_ollama
from llama_corral.common.web.request_body import GIVEN_BODY
from msgspec import Struct

_STREAMING = ("/completion", "/completions", "/responses", "/messages", "/infill", "/audio/transcriptions")
"""Suffixes of the paths that can answer with server-sent events."""
_CHATS = "/chat/completions"
PROGRESS_S = 1.0
"""Seconds between two checks of a load's progress."""


class KeepalivePolicy(Struct, frozen=True):
    after: float = -1
    """Seconds of waiting after which a stream begins without its response; negative: never."""
    interval: float = 30
    """Seconds between two comments; 0 or negative: no comments, and so no stream either."""
    sends_reasoning: bool = False
    """True if chats get the load's progress as reasoning text, so that a user can see it."""

    def allows(self, request: web.Request) -> bool:
        """Return True if the request may get a stream with comments.

        JSON lines have no comments. A client that resumes a stream counts its bytes, and comments would be extra ones.
        """
        return (
            self.after >= 0
            and self.interval > 0
            and request.path.endswith(_STREAMING)
            and not speaks_ollama(request)
            and GIVEN_BODY not in request
            and CONVERSATION_HEADER not in request.headers
        )


NO_KEEPALIVE = KeepalivePolicy()


class KeepaliveStream:
    """The keepalive stream of one request. `end()` must always be called; it may be called repeatedly."""

    def __init__(
        self,
        request: web.Request,
        model: str,
        keepalive: KeepalivePolicy,
        is_wanted: bool,
        says: Callable[[], str],
    ) -> None:
        """`is_wanted`: True if the request asks for a stream.

        `says`: returns the text of the next comment.
        """
        self._request = request
        self._model = model
        self._interval = keepalive.interval
        self._thinks = keepalive.sends_reasoning and request.path.endswith(_CHATS)
        self._describe_wait = says
        self._over = asyncio.Event()
        self._sending: asyncio.Task[web.StreamResponse] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if is_wanted and keepalive.allows(request):
            self._timer = asyncio.get_running_loop().call_later(keepalive.after, self._begin)

    async def end(self) -> web.StreamResponse | None:
        """Stop the comments. Return the stream if it has begun; the caller owns it from then on."""
        if self._timer is not None:
            self._timer.cancel()
        self._over.set()
        return None if self._sending is None else await self._sending

    def _begin(self) -> None:
        self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> web.StreamResponse:
        response = event_stream()
        with contextlib.suppress(ConnectionError):  # the client disconnected: its handler is cancelled separately
            await response.prepare(self._request)
            await (self._send_reasoning(response) if self._thinks else self._comment(response))
        return response

    async def _comment(self, response: web.StreamResponse) -> None:
        while not self._over.is_set():
            await response.write(_comment(self._describe_wait()))
            await self._pause(self._interval)

    async def _send_reasoning(self, response: web.StreamResponse) -> None:
        told, due = "", 0.0
        while not self._over.is_set():
            text, now = self._describe_wait(), time.monotonic()
            if text != told or now >= due:
                await response.write(_comment(text) if text == told else _reasoning_chunk(self._model, text))
                told, due = text, now + self._interval
            await self._pause(min(PROGRESS_S, self._interval))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()


def _comment(text: str) -> bytes:
    return f": {text}\n\n".encode()


def _reasoning_chunk(model: str, text: str) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "reasoning_content": text + "\n"}, "finish_reason": None}
    chunk = {"id": "chatcmpl-waiting", "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
    return b"data: " + encode_json({**chunk, "choices": [choice]}) + b"\n\n"
