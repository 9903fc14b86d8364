"""`/v1/chat/completions/control`: a word to a completion while it is at work, and which completions are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from ...presets.errors import InvalidRequest
from ...presets.web import json_response, read_object

ACTIONS = ("reasoning_end",)


class ActiveCompletions:
    """The ids that answers carry, from a request's submission to the end of its answer."""

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def __contains__(self, id: object) -> bool:
        return id in self._ids

    @contextmanager
    def running(self, id: str) -> Iterator[None]:
        self._ids.add(id)
        try:
            yield
        finally:
            self._ids.discard(id)


ACTIVE = web.AppKey("active", ActiveCompletions)


async def control(request: web.Request) -> web.StreamResponse:
    """That nothing could be done is an answer, not an error: the completion may have ended on its own just now."""
    body = await read_object(request)
    id, action = body.get("id"), body.get("action")
    if not isinstance(id, str) or not id:
        raise InvalidRequest("missing completion id")
    if action not in ACTIONS:
        raise InvalidRequest("unknown control action")
    if id not in request.app[ACTIVE]:
        return json_response({"success": False, "message": "no active completion for this id"})
    # thoughts are not told from the answer yet, and `reasoning_control` is refused, so no completion can have it
    return json_response({"success": False, "message": "reasoning control not enabled for this completion"})
