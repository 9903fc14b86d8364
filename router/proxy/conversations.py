"""Record which model answers a conversation, and let its request continue when the client disconnects.

A conversation is a POST with an `X-Conversation-Id`. The proxy runs its requests through this module; `streams` looks
up the model of a conversation and stops it. The HTTP request to the worker is made by the caller's coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest
from msgspec import Struct

RETENTION_S = 360.0
"""Seconds to keep a conversation's model after its end: longer than the 300 s for which workers keep a stream."""


class Conversation(Struct, eq=False):
    model: str
    outlives_client: bool
    """True if the request continues without its client, because it streams: the client can resume the stream."""
    is_parked: bool = True
    """True if the request was not sent to the worker yet, usually because the model still loads."""
    request: asyncio.Task[web.StreamResponse] | None = None
    """None if it has ended."""


Work = Callable[[Conversation], Coroutine[Any, Any, web.StreamResponse]]


class Conversations:
    def __init__(self, *, kept_s: float = RETENTION_S) -> None:
        self._kept_s = kept_s
        self._conversations: dict[str, Conversation] = {}
        self._requests: set[asyncio.Task[web.StreamResponse]] = set()

    def find(self, name: str) -> Conversation | None:
        return self._conversations.get(name)

    def matching(self, names: Iterable[str]) -> dict[str, Conversation]:
        """Return the conversations whose name is one of `names`, or starts with one of them followed by `::`."""
        return {
            known: conversation
            for wanted in names
            for known, conversation in self._conversations.items()
            if known == wanted or known.startswith(wanted + "::")
        }

    async def run(self, name: str, model: str, work: Work, *, outlives_client: bool) -> web.StreamResponse:
        """Return the response of `work`, run in a task that `stop` cancels while it is parked.

        If the caller is cancelled, the task continues if `outlives_client`. Raises InvalidRequest if it was stopped.
        """
        self.stop(name)
        conversation = self._conversations[name] = Conversation(model, outlives_client)
        request = conversation.request = asyncio.ensure_future(work(conversation))
        self._requests.add(request)
        request.add_done_callback(lambda _: self._on_end(name, conversation, request))
        try:
            await asyncio.wait({request})
        except asyncio.CancelledError:
            if not outlives_client:
                request.cancel()
            raise
        if request.cancelled():
            raise InvalidRequest("request cancelled by a stop while the model was loading")
        return request.result()

    def stop(self, name: str) -> Conversation | None:
        """Remove and return a conversation. Cancel its request if it is parked; a running stream is not ended here."""
        conversation = self._conversations.pop(name, None)
        if conversation is not None and conversation.is_parked and conversation.request is not None:
            conversation.request.cancel()
        return conversation

    async def close(self) -> None:
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def _on_end(self, name: str, conversation: Conversation, request: asyncio.Task[web.StreamResponse]) -> None:
        self._requests.discard(request)
        conversation.request = None
        if not request.cancelled():
            request.exception()  # marks it as retrieved: the waiting caller may have been cancelled
        kept_s = 0.0 if conversation.is_parked else self._kept_s
        asyncio.get_running_loop().call_later(kept_s, self._forget, name, conversation)

    def _forget(self, name: str, conversation: Conversation) -> None:
        if self._conversations.get(name) is conversation:
            del self._conversations[name]
