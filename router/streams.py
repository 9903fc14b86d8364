"""Handlers of resumable streams. The worker that has the stream answers, if it still runs.

`conversations` finds that worker's model, and `proxy` forwards the request. No handler loads or wakes a model.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, NotFound, Unavailable
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import conversation_of, json_response
from llama_corral.common.web.request_body import LOOKUP_BODY, fields_in, read_unmarked_body
from msgspec import Struct

from .lifecycle.lifecycle import Lifecycle
from .placement.states import ModelState
from .proxy.conversations import Conversations
from .proxy.proxy import Proxy

LOADING = (ModelState.LOADING.value, ModelState.DOWNLOADING.value, ModelState.DOWNLOADED.value)


class Streams:
    def __init__(self, lifecycle: Lifecycle, proxy: Proxy, conversations: Conversations) -> None:
        self._lifecycle = lifecycle
        self._proxy = proxy
        self._conversations = conversations

    async def resume(self, request: web.Request) -> web.StreamResponse:
        conversation = self._conversations.find(conversation_of(request))
        view = self._lifecycle.view(conversation.model) if conversation else None
        if conversation is None or view is None:
            raise NotFound("Stream not found or expired")
        if conversation.is_parked or view.status in LOADING:
            raise Unavailable("Stream owner model is loading, retry later")
        if not view.is_running:
            raise NotFound("Stream not found or expired")
        return await self._proxy.forward_if_running(request, conversation.model)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        conversation = self._conversations.stop(conversation_of(request))
        if conversation is not None and not conversation.is_parked:
            await self._proxy.query(request, conversation.model)
        return web.Response(status=204, headers={"Content-Type": "application/json"})

    async def look_up(self, request: web.Request) -> web.StreamResponse:
        """Query all models that have one of the conversations, concurrently, and return their entries in one list."""
        known = self._conversations.matching(await _wanted(request))
        by_model: dict[str, set[str]] = {}
        for name, conversation in known.items():
            by_model.setdefault(conversation.model, set()).add(name)
        answers = await asyncio.gather(*(self._look_up_on_model(request, *asked) for asked in by_model.items()))
        return json_response([entry for answer in answers for entry in answer])

    async def _look_up_on_model(self, request: web.Request, model: str, names: set[str]) -> list[dict[str, Any]]:
        answer = await self._proxy.query(request, model, body=encode_json({"conversation_ids": sorted(names)}))
        try:
            entries = msgspec.json.decode(answer or b"[]", type=list[dict[str, Any]])
        except msgspec.DecodeError:
            return []
        return [entry for entry in entries if entry.get("conversation_id") in names]


class _LookUp(Struct):
    conversation_ids: Any = None


async def _wanted(request: web.Request) -> frozenset[str]:
    """Return the conversations of a lookup; none for a body of another form, as in llama-server."""
    body = await read_unmarked_body(request, most=LOOKUP_BODY)
    try:
        given = fields_in(body, _LookUp).conversation_ids
    except InvalidRequest:
        given = None
    if not isinstance(given, list):
        return frozenset()
    return frozenset(name for name in given if name and isinstance(name, str))
