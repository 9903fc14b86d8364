"""`/v1/chat/completions/control`: a word to a completion while it is at work, and which completions are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.application import json_response, read_object

from ..engine.messages import Generation, Sink
from ..engine.runner import LoadedModel, Ticket

ACTIONS = ("reasoning_end",)


class ControllableCompletion:
    """A loaded model as one request sees it: what it submits can be spoken to later."""

    def __init__(self, loaded: LoadedModel, controllable: bool) -> None:
        self.controllable = controllable
        self._loaded = loaded
        self._tickets: list[Ticket] = []

    def submit(self, request: Generation, sink: Sink) -> Ticket:
        ticket = self._loaded.submit(request, sink)
        self._tickets.append(ticket)
        return ticket

    async def end_thoughts(self) -> bool:
        """Of all its choices. False: none of them has a slot, any more or yet."""
        return any([await ticket.end_thoughts() for ticket in self._tickets])


class ActiveCompletions:
    """By the ids that answers carry, from a request's submission to the end of its answer."""

    def __init__(self) -> None:
        self._completions: dict[str, ControllableCompletion] = {}

    def find(self, id: str) -> ControllableCompletion | None:
        return self._completions.get(id)

    @contextmanager
    def running(self, id: str, loaded: LoadedModel, *, controllable: bool) -> Iterator[ControllableCompletion]:
        completion = self._completions[id] = ControllableCompletion(loaded, controllable)
        try:
            yield completion
        finally:
            del self._completions[id]


ACTIVE = web.AppKey("active", ActiveCompletions)


async def control(request: web.Request) -> web.StreamResponse:
    """That nothing could be done is an answer, not an error: the completion may have ended on its own just now."""
    body = await read_object(request)
    id, action = body.get("id"), body.get("action")
    if not isinstance(id, str) or not id:
        raise InvalidRequest("missing completion id")
    if action not in ACTIONS:
        raise InvalidRequest("unknown control action")
    completion = request.app[ACTIVE].find(id)
    if completion is None:
        return _refused("no active completion for this id")
    if not completion.controllable:
        return _refused("reasoning control not enabled for this completion")
    if not await completion.end_thoughts():
        return _refused("no active completion for this id")
    return json_response({"success": True})


def _refused(why: str) -> web.Response:
    return json_response({"success": False, "message": why})
