"""Distribute changes of models to the clients that listen on `/models/sse`.

`lifecycle` publishes. A slow listener delays nothing: when its queue is full, its stream ends, and it can request
`/models` again. Names and data of the events are llama-server's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from llama_corral.common.base.errors import TooManyRequests
from msgspec import Struct

BACKLOG = 1024
"""Largest number of undelivered events of one listener: some minutes of load progress, a few hundred KB."""

MAX_LISTENERS = 256
"""Maximum number of listeners: each change of a model is written to all of them."""


class ModelEvent(Struct, frozen=True):
    model: str
    event: str
    data: dict[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        """Return the JSON object of the SSE line."""
        head: dict[str, Any] = {"model": self.model, "event": self.event}
        return head if self.data is None else {**head, "data": self.data}


Subscription = asyncio.Queue[ModelEvent | None]
"""Events in order; None: the end (the listener was too slow, or the router shuts down)."""


class ModelEvents:
    def __init__(self) -> None:
        self._listeners: set[Subscription] = set()
        self._is_closed = False

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """Raises TooManyRequests."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise TooManyRequests(f"{MAX_LISTENERS} clients already listen to the models' changes")
        listener: Subscription = asyncio.Queue()
        self._listeners.add(listener)
        if self._is_closed:
            listener.put_nowait(None)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def publish(self, model: str, event: str, data: dict[str, Any] | None = None) -> None:
        change = ModelEvent(model, event, data)
        for listener in tuple(self._listeners):
            if listener.qsize() < BACKLOG:
                listener.put_nowait(change)
            else:
                self._close_listener(listener)

    def close(self) -> None:
        self._is_closed = True
        for listener in tuple(self._listeners):
            self._close_listener(listener)

    def _close_listener(self, listener: Subscription) -> None:
        self._listeners.discard(listener)
        listener.put_nowait(None)
