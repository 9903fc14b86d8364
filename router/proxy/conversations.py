"""Remember which model answers a conversation, and let its request continue when the client disconnects.

A conversation is a POST with an `X-Conversation-Id`. The proxy runs its requests through this module; `streams` asks
which model has a conversation and stops it. The HTTP request to the worker is made by the caller's coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest

RETENTION_S = 360.0
"""A worker keeps what was streamed for 300 s after its end; this is about that stream's owner, so no shorter."""


@dataclass(slots=True, eq=False)
class Conversation:
    model: str
    outlives_client: bool
    """Once it streams there is something to come back to."""
    is_parked: bool = True
    """Its request has not been sent to the worker yet; most of the time because that one still loads."""
    request: asyncio.Task[web.StreamResponse] | None = None
    """None: it has ended."""


Work = Callable[[Conversation], Coroutine[Any, Any, web.StreamResponse]]


class Conversations:
    def __init__(self, *, kept_s: float = RETENTION_S) -> None:
        self._kept_s = kept_s
        self._conversations: dict[str, Conversation] = {}
        self._requests: set[asyncio.Task[web.StreamResponse]] = set()

    def find(self, name: str) -> Conversation | None:
        return self._conversations.get(name)

    def matching(self, names: Iterable[str]) -> dict[str, Conversation]:
        """Those with one of the names, or with one of them and `::` and more behind it; never any other."""
        return {
            known: conversation
            for wanted in names
            for known, conversation in self._conversations.items()
            if known == wanted or known.startswith(wanted + "::")
        }

    async def run(self, name: str, model: str, work: Work, *, outlives_client: bool) -> web.StreamResponse:
        """`work`'s answer. It goes on when the caller is cancelled, if it may; `stop` ends it while it is parked."""
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
        """Forgets it, and ends its request if that is still parked; what streams already is its worker's to end."""
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
            request.exception()  # whoever waits for it has it; nobody may be left
        kept_s = 0.0 if conversation.is_parked else self._kept_s
        asyncio.get_running_loop().call_later(kept_s, self._forget, name, conversation)

    def _forget(self, name: str, conversation: Conversation) -> None:
        if self._conversations.get(name) is conversation:
            del self._conversations[name]
