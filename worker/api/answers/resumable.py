"""Resumable streams: with `X-Conversation-Id` a stream continues after its client disconnects and can be read again.

`resumable` wraps the handlers that stream. Without the header nothing changes. With it the handler runs as a task of
the conversation's session and writes to the session; the client is its first reader. The endpoints resume, list and
stop sessions; they do not use the model and do not wake it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, NotFound
from llama_corral.common.web.application import (
    CONVERSATION_HEADER,
    Handler,
    conversation_of,
    event_stream,
    json_response,
    query_text,
)
from llama_corral.common.web.request_body import LOOKUP_BODY, read_json

from ..request.limits import check_limit
from .stream_sessions import OffsetLost, StreamSession, StreamSessions

SESSIONS = web.AppKey("sessions", StreamSessions)
MOST_DIGITS = 18
"""Limit for the number of digits of a byte offset."""
_SESSION = "session"
"""The key in a request for the session that its answer is written to."""


async def sessions(app: web.Application) -> AsyncIterator[None]:
    """Create the app's sessions and close them when the server has stopped; for `cleanup_ctx`."""
    app[SESSIONS] = StreamSessions()
    yield
    await app[SESSIONS].close()


# -- producing -------------------------------------------------------------------------------------------------------


def resumable(handler: Handler) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        conversation = request.headers.get(CONVERSATION_HEADER, "")
        if not conversation:
            return await handler(request)
        return await _in_session(request, handler, conversation)

    return answer


async def _in_session(request: web.Request, handler: Handler, conversation: str) -> web.StreamResponse:
    async def produce(session: StreamSession) -> web.StreamResponse:
        request[_SESSION] = session
        return await handler(request)

    session = request.app[SESSIONS].open(conversation, produce)
    producer = session.producer
    assert producer is not None
    begun = asyncio.ensure_future(session.begun.wait())
    try:
        await asyncio.wait({producer, begun}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        session.client_left = True
        if session.outlives_client is False:
            producer.cancel()
        raise
    finally:
        begun.cancel()
    if session.begun.is_set():
        return await _send(request, session, 0)
    if producer.cancelled():
        raise InvalidRequest("request cancelled by a stop of its stream, or by a newer request of its conversation")
    whole: web.StreamResponse = producer.result()
    return whole


def set_outlives_client(request: web.Request, *, streams: bool) -> None:
    """Set whether the answer continues after its client disconnects: only a stream does.

    Raises ConnectionResetError if it does not and the client has already disconnected.
    """
    session: StreamSession | None = request.get(_SESSION)
    if session is None:
        return
    session.outlives_client = streams
    if not streams:
        request.app[SESSIONS].forget(session)
        if session.client_left:
            raise ConnectionResetError("the client disconnected")


def open_stream(request: web.Request, content_type: str) -> web.StreamResponse:
    """Return the response that the stream is written to: the client's, or that of the conversation's session."""
    session: StreamSession | None = request.get(_SESSION)
    if session is None:
        return event_stream(content_type)
    session.content_type = content_type
    return _SessionResponse(session)


class _SessionResponse(web.StreamResponse):
    """A response that writes a stream to a session."""

    def __init__(self, session: StreamSession) -> None:
        super().__init__()
        self._session = session

    async def prepare(self, request: web.BaseRequest) -> None:
        self._session.begun.set()

    async def write(self, data: Any) -> None:
        self._session.append(data)

    async def write_eof(self, data: bytes = b"") -> None:
        pass  # the session is done when its producer is


# -- reading ---------------------------------------------------------------------------------------------------------


async def _send(request: web.Request, session: StreamSession, offset: int) -> web.StreamResponse:
    response = event_stream(session.content_type)
    await response.prepare(request)
    try:
        while chunk := await session.read(offset):
            await response.write(chunk)
            offset += len(chunk)
    except OffsetLost:
        raise ConnectionAbortedError("the client reads too slowly: its next bytes were dropped") from None
    await response.write_eof()
    return response


async def resume(request: web.Request) -> web.StreamResponse:
    session = request.app[SESSIONS].get(conversation_of(request))
    if session is None:
        raise NotFound("Stream not found or expired")
    given = query_text(request, "from") or "0"
    if not (given.isascii() and given.isdigit() and len(given) <= MOST_DIGITS):
        raise InvalidRequest("Invalid 'from' offset")
    if int(given) < session.n_dropped:
        raise InvalidRequest("Stream offset lost, please restart")
    return await _send(request, session, int(given))


async def stop(request: web.Request) -> web.StreamResponse:
    request.app[SESSIONS].stop(conversation_of(request))
    return web.Response(status=204, headers={"Content-Type": "application/json"})


async def look_up(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, most=LOOKUP_BODY)
    given = body.get("conversation_ids") if isinstance(body, dict) else None
    if isinstance(given, list):
        check_limit("conversation_ids", given)
    wanted = [name for name in given if isinstance(name, str) and name] if isinstance(given, list) else []
    return json_response([_shown(session) for session in request.app[SESSIONS].matching(wanted)])


def _shown(session: StreamSession) -> dict[str, Any]:
    return {
        "conversation_id": session.conversation,
        "is_done": session.is_done,
        "total_bytes": session.total_bytes,
        "started_at": session.started_at,
        "completed_at": session.completed_at,
    }
