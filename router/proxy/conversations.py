"""Record which model answers a conversation, and let its request continue when the client disconnects.

A conversation is a POST with an `X-Conversation-Id`. The proxy runs its requests through this module; `streams` looks
up the model of a conversation and stops it. The HTTP request to the worker is made by the caller's coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, TooManyRequests
from llama_corral.common.web.application import CONVERSATION_HEADER
from msgspec import Struct

RETENTION_S = 360.0
"""Seconds to keep a conversation's model after its end: longer than the 300 s for which workers keep a stream."""
MAX_CONVERSATIONS = 1000
"""Maximum number of conversations. A new one replaces the one that ended first; it is refused
if as many requests of conversations still run, also of those that were stopped or replaced."""
MAX_NAME = 256
"""Maximum characters of a conversation's name. Clients send a UUID, or a UUID and the name of a model."""
SEPARATOR = "::"
"""Between a conversation's name and what a client adds to it for each answer."""


class Conversation(Struct, eq=False):
    model: str
    outlives_client: bool
    """True if the request continues without its client, because it streams: the client can resume the stream."""
    is_parked: bool = True
    """True if the request was not sent to the worker yet, usually because the model still loads."""
    request: asyncio.Task[web.StreamResponse] | None = None
    """None if it has ended."""
    expiry: asyncio.TimerHandle | None = None
    """Removes the conversation some time after its end."""


Work = Callable[[Conversation], Coroutine[Any, Any, web.StreamResponse]]


class Conversations:
    def __init__(self, *, kept_s: float = RETENTION_S, most: int = MAX_CONVERSATIONS) -> None:
        self._kept_s = kept_s
        self._most = most
        self._conversations: dict[str, Conversation] = {}
        self._requests: set[asyncio.Task[web.StreamResponse]] = set()

    def find(self, name: str) -> Conversation | None:
        return self._conversations.get(name)

    def matching(self, names: Iterable[str]) -> dict[str, Conversation]:
        """Return the conversations whose name is one of `names`, or starts with one of them followed by `::`."""
        wanted = frozenset(names)
        return {
            known: conversation
            for known, conversation in self._conversations.items()
            if any(name in wanted for name in _prefixes(known))
        }

    async def run(self, name: str, model: str, work: Work, *, outlives_client: bool) -> web.StreamResponse:
        """Return the response of `work`, run in a task that `stop` cancels while it is parked.

        It replaces the conversation of the same name, which is stopped. If the caller is cancelled, the task continues
        if `outlives_client`. Raises InvalidRequest if it was stopped or its name is too long, and TooManyRequests if
        there are too many; then nothing is stopped.
        """
        if len(name) > MAX_NAME:
            raise InvalidRequest(
                f"header '{CONVERSATION_HEADER}': expected at most {MAX_NAME} characters, found {len(name)}"
            )
        self._make_room(name)
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
        conversation = self._conversations.get(name)
        if conversation is not None:
            self._forget(name, conversation)
            if conversation.is_parked and conversation.request is not None:
                conversation.request.cancel()
        return conversation

    def _make_room(self, name: str) -> None:
        """Forget the conversation that ended first if there are as many as may be, and none has this name.

        Raise TooManyRequests if as many requests still run; each conversation has one at most.
        """
        if len(self._requests) >= self._most:
            raise TooManyRequests(f"there are already {self._most} unfinished requests in conversations")
        if len(self._conversations) < self._most or name in self._conversations:
            return
        ended = next(known for known, one in self._conversations.items() if one.request is None)
        self._forget(ended, self._conversations[ended])

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
        if self._conversations.get(name) is not conversation:
            return
        del self._conversations[name]
        self._conversations[name] = conversation  # in the order of their ends
        conversation.expiry = asyncio.get_running_loop().call_later(kept_s, self._forget, name, conversation)

    def _forget(self, name: str, conversation: Conversation) -> None:
        if conversation.expiry is not None:
            conversation.expiry.cancel()
        if self._conversations.get(name) is conversation:
            del self._conversations[name]


def _prefixes(name: str) -> Iterator[str]:
    """Yield the name, and each of its beginnings that `::` follows."""
    yield name
    at = name.find(SEPARATOR)
    while at >= 0:
        yield name[:at]
        at = name.find(SEPARATOR, at + 1)
