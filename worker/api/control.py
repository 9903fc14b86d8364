"""`/v1/chat/completions/control`: controls a running completion. Keeps the list of running completions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.application import json_response

from ..engine.messages import Generation, Share, Sink
from ..engine.runner import LoadedModel, Ticket
from .serving import read_request

ACTIONS = ("reasoning_end",)


class ControllableCompletion:
    """A loaded model for one request; keeps the tickets of unfinished prompts, so that they can be controlled later."""

    def __init__(self, loaded: LoadedModel, controllable: bool, share: Share) -> None:
        self.controllable = controllable
        self._share = share
        self._loaded = loaded
        self._tickets: list[Ticket] = []

    def submit(self, request: Generation, sink: Sink, *, checked: bool = False) -> Ticket:
        ticket = self._loaded.submit(request, sink, self._share, checked=checked)
        if self.controllable:
            self._tickets = [*(other for other in self._tickets if not other.done), ticket]
        return ticket

    def check(self, request: Generation) -> None:
        self._loaded.check(request)

    @property
    def window(self) -> int:
        return self._loaded.window

    async def end_thoughts(self) -> bool:
        """End the reasoning of all choices. Return False if none of them is in a slot (not yet, or no longer)."""
        return any([await ticket.end_thoughts() for ticket in self._tickets])


class ActiveCompletions:
    """The running completions by answer id. An entry lives from the request's submission to the end of its answer."""

    def __init__(self) -> None:
        self._completions: dict[str, ControllableCompletion] = {}

    def find(self, id: str) -> ControllableCompletion | None:
        return self._completions.get(id)

    @contextmanager
    def running(
        self, id: str, loaded: LoadedModel, share: Share, *, controllable: bool
    ) -> Iterator[ControllableCompletion]:
        completion = self._completions[id] = ControllableCompletion(loaded, controllable, share)
        try:
            yield completion
        finally:
            del self._completions[id]


ACTIVE = web.AppKey("active", ActiveCompletions)


async def control(request: web.Request) -> web.StreamResponse:
    """Handle a control request.

    An action that has no target is no HTTP error (`"success": false`): the completion may have just ended by itself.
    """
    body = await read_request(request)
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
