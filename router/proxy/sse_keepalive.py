"""Streams that begin before their answer: comments to a client whose model is queued, loads or has not said a word yet.

Proxies on the way cut connections that are silent for a minute. So a request for server-sent events that waits too long
gets its status, 200, and then comments, which clients pass over; a refusal that comes later is an error event. Before
that nothing is sent, so that a refusal has a status of its own. Used by `proxy`, which says what the comments tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import CONVERSATION_HEADER, GIVEN_BODY, event_stream
from llama_corral.common.web.ollama import speaks_ollama

_STREAMING = ("/completion", "/completions", "/responses", "/messages", "/infill", "/audio/transcriptions")
"""The ends of the paths that can answer with server-sent events."""
_CHATS = "/chat/completions"
PROGRESS_S = 1.0
"""Between two looks at a load whose progress is told."""


@dataclass(frozen=True, slots=True)
class KeepalivePolicy:
    after: float = -1
    """Seconds of silence until a stream begins without its answer; negative: never."""
    interval: float = 30
    """Seconds between two comments; 0 and less: none, and so no stream either."""
    sends_reasoning: bool = False
    """In chats a model's thoughts tell how its load gets on, for a person to see."""

    def allows(self, request: web.Request) -> bool:
        """Lines of JSON have no comments; and who resumes a stream counts its bytes, of which these are none."""
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
    """One request's. `end()` must follow, whatever happens; it may be called again."""

    def __init__(
        self,
        request: web.Request,
        model: str,
        keepalive: KeepalivePolicy,
        is_wanted: Callable[[], bool],
        says: Callable[[], str],
    ) -> None:
        """`is_wanted` is asked only once the time has come: it looks through the whole body."""
        self._request = request
        self._model = model
        self._interval = keepalive.interval
        self._thinks = keepalive.sends_reasoning and request.path.endswith(_CHATS)
        self._is_wanted = is_wanted
        self._describe_wait = says
        self._over = asyncio.Event()
        self._sending: asyncio.Task[web.StreamResponse] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if keepalive.allows(request):
            self._timer = asyncio.get_running_loop().call_later(keepalive.after, self._begin)

    async def end(self) -> web.StreamResponse | None:
        """The stream, if it has begun: from now on it is the caller's."""
        if self._timer is not None:
            self._timer.cancel()
        self._over.set()
        return None if self._sending is None else await self._sending

    def _begin(self) -> None:
        if self._is_wanted():
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> web.StreamResponse:
        response = event_stream()
        with contextlib.suppress(ConnectionError):  # the client left: its handler is told by other ways
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
