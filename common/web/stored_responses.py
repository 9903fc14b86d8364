"""The endpoints for stored responses: read, list input items, delete. None of them needs a model.

They are the same in router and worker, which use the same store. Only the worker creates responses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from ..base.errors import ApiError, InvalidRequest
from .application import Route, json_response, query_text
from .response_store import ResponseStore

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
    return json_response((await _record(request))["response"])


async def delete(request: web.Request) -> web.StreamResponse:
    id = request.match_info["id"]
    if not await asyncio.to_thread(request.app[RESPONSES].delete, id):
        raise ResponseNotFound(id)
    return json_response({"id": id, "object": "response", "deleted": True})


async def cancel(request: web.Request) -> web.StreamResponse:
    await _record(request)
    raise InvalidRequest("Cannot cancel a response that was not made in the background: close its connection instead.")


async def input_items(request: web.Request) -> web.StreamResponse:
    """Return all input items of a response, by default the newest first; includes those of previous responses."""
    items: list[dict[str, Any]] = (await _record(request))["input"]
    order = query_text(request, "order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest("query parameter 'order' must be asc or desc")
    if order == "desc":
        items.reverse()
    if after := query_text(request, "after"):
        at = next((at for at, item in enumerate(items) if item.get("id") == after), None)
        if at is None:
            raise InvalidRequest(f"query parameter 'after': there is no item {after!r}")
        items = items[at + 1 :]
    limit = _limit(query_text(request, "limit"))
    page = items[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


def _limit(given: str) -> int:
    if not given:
        return DEFAULT_ITEMS
    if not (given.isascii() and given.isdigit() and len(given) <= 3 and 1 <= int(given) <= MAX_ITEMS):
        raise InvalidRequest(f"query parameter 'limit' must be a number from 1 to {MAX_ITEMS}")
    return int(given)


async def _record(request: web.Request) -> dict[str, Any]:
    id = request.match_info["id"]
    record = await asyncio.to_thread(request.app[RESPONSES].get, id)
    if record is None:
        raise ResponseNotFound(id)
    return record


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
