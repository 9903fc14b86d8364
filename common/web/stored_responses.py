"""The endpoints for stored responses: read, list input items, delete. None of them needs a model.

They are the same in router and worker, which use the same store. Only the worker creates responses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from ..base.errors import ApiError, InvalidRequest
from .application import Route, json_response, query_text
from .response_store import ResponseStore, StoredText

RESPONSES = web.AppKey("responses", ResponseStore)
MAX_ITEMS, DEFAULT_ITEMS = 100, 20


class ResponseNotFound(ApiError):
    status = 404
    type = "invalid_request_error"

    def __init__(self, id: str) -> None:
        super().__init__(f"Response with id '{id}' not found.")

    def body(self) -> dict[str, Any]:
        return {**super().body(), "param": "response_id"}


async def keep_until_cleanup(app: web.Application) -> AsyncIterator[None]:
    """Close the store when the application ends; to be added to its `cleanup_ctx`."""
    yield
    await asyncio.to_thread(app[RESPONSES].close)


async def retrieve(request: web.Request) -> web.StreamResponse:
    if query_text(request, "stream") in ("true", "1"):
        raise InvalidRequest("a stored response cannot be streamed again, request it without 'stream'")
    return json_response((await _stored(request)).response)


async def delete(request: web.Request) -> web.StreamResponse:
    id = request.match_info["id"]
    if not await asyncio.to_thread(request.app[RESPONSES].delete, id):
        raise ResponseNotFound(id)
    return json_response({"id": id, "object": "response", "deleted": True})


async def cancel(request: web.Request) -> web.StreamResponse:
    await _stored(request)
    raise InvalidRequest("Cannot cancel a response that was not made in the background: close its connection instead.")


async def input_items(request: web.Request) -> web.StreamResponse:
    """Return all input items of a response, by default the newest first; includes those of previous responses."""
    order = query_text(request, "order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest("query parameter 'order' must be asc or desc")
    after, limit = query_text(request, "after"), _limit(query_text(request, "limit"))
    return json_response(await asyncio.to_thread(_page, (await _stored(request)).input, order, after, limit))


def _page(text: msgspec.Raw, order: str, after: str, limit: int) -> dict[str, Any]:
    """Return a part of a list of items. Only its items are built. Raises InvalidRequest."""
    ids = [item.id for item in msgspec.json.decode(text, type=list[_Item])]
    positions = range(len(ids)) if order == "asc" else range(len(ids) - 1, -1, -1)
    if after:
        at = next((at for at, position in enumerate(positions) if ids[position] == after), None)
        if at is None:
            raise InvalidRequest(f"query parameter 'after': there is no item {after!r}")
        positions = positions[at + 1 :]
    page = positions[:limit]
    items = msgspec.json.decode(text, type=list[msgspec.Raw]) if page else []
    return {
        "object": "list",
        "data": [items[position] for position in page],
        "first_id": ids[page[0]] if page else None,
        "last_id": ids[page[-1]] if page else None,
        "has_more": len(positions) > limit,
    }


class _Item(Struct):
    id: str | None = None


def _limit(given: str) -> int:
    if not given:
        return DEFAULT_ITEMS
    if not (given.isascii() and given.isdigit() and len(given) <= 3 and 1 <= int(given) <= MAX_ITEMS):
        raise InvalidRequest(f"query parameter 'limit' must be a number from 1 to {MAX_ITEMS}")
    return int(given)


async def _stored(request: web.Request) -> StoredText:
    id = request.match_info["id"]
    found = await asyncio.to_thread(request.app[RESPONSES].get_text, id)
    if found is None:
        raise ResponseNotFound(id)
    return found


ROUTES: list[Route] = [
    (method, version + path, handler)
    for version in ("", "/v1")
    for method, path, handler in (
        ("GET", "/responses/{id}", retrieve),
        ("DELETE", "/responses/{id}", delete),
        ("POST", "/responses/{id}/cancel", cancel),
        ("GET", "/responses/{id}/input_items", input_items),
    )
]
