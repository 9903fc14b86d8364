"""Requests that a worker answers: find the model, hold a lease for as long as the answer flows, pass the bytes on.

Called by the routes of `app`; asks `lifecycle` for the lease and `upstream` for the answer. Reads nothing of a body but
the model's name and changes nothing of it. A client that leaves cancels the handler, which closes the way to the
worker, which ends the generation; a stream that it can resume runs as a task of its own instead (`conversations`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from aiohttp import hdrs, web
from multidict import CIMultiDict

from ..presets.envelopes import envelope_of
from ..presets.errors import ApiError, InvalidRequest, ModelNotFound, Unavailable, UpstreamGone
from ..presets.ollama_models import LATEST
from ..presets.web import (
    CONVERSATION_HEADER,
    EVENT_STREAM_TYPE,
    GIVEN_BODY,
    LIMITS,
    LINES_TYPE,
    error_event,
    query_text,
    read_body,
)
from .connection import CutOff, Died, Header, Reply, Unreachable
from .conversations import Conversation, Conversations
from .lifecycle import Lifecycle
from .placement import Stay
from .target import model_in_form, model_in_json, streams_in_form, streams_in_json
from .upstream import Upstream
from .waiting import Lease

log = logging.getLogger("corral.router")

FAKE_TIMING_S = 2.0
"""With LLAMA_SERVER_DEBUG_FAKE_TIMING every proxied request holds its lease this long before it goes on."""

ASK_TIMEOUT_S = 1.0
"""For what a worker answers from memory; llama-server gives it a quarter of that."""
RESUMABLE_PATIENCE_S = 30.0
"""A client that reads nothing for so long is parted from a stream that it can resume; one that vanished looks so."""
OK = 200
FORM = "multipart/form-data"

_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
_NOT_SENT_ON = _HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect"}
"""`accept-encoding`: a compressed answer would be held back by its compressor. aiohttp has answered `expect`."""
_NOT_PASSED_BACK = _HOP_BY_HOP | {b"server", b"date", b"content-length"}
"""What our own answer says for itself."""


@dataclass(slots=True)
class _Body:
    """Emptied once it was sent: its answer may flow for many minutes, and images are large."""

    data: bytes


class Proxy:
    """The handlers of all proxied routes."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        upstream: Upstream,
        conversations: Conversations,
        *,
        prefix: str = "",
        fake_timing: bool = False,
    ) -> None:
        """`prefix`: of the paths of workers, which is the router's own."""
        self._lifecycle = lifecycle
        self._upstream = upstream
        self._conversations = conversations
        self._prefix = prefix
        self._fake_timing = fake_timing

    async def by_query(self, request: web.Request) -> web.StreamResponse:
        """GET: the model is `?model=`."""
        return await self._forward(request, self.find(query_text(request, "model")), _Body(b""), touch=False)

    async def by_body(self, request: web.Request) -> web.StreamResponse:
        """POST: the model is the body's; `?model=` serves bodies that cannot name one (a JSON array, an empty body)."""
        body = _Body(await read_body(request))
        if request.content_type == FORM:
            model = model_in_form(body.data, request.headers[hdrs.CONTENT_TYPE])
        else:
            model = model_in_json(body.data)
        model = self.find(model or query_text(request, "model"))
        if conversation := request.headers.get(CONVERSATION_HEADER, ""):
            return await self._in_conversation(request, conversation, model, body)
        return await self._forward(request, model, body, touch=True)

    async def forward(
        self, request: web.Request, model: str, data: bytes, *, stay: Stay | None = None
    ) -> web.StreamResponse:
        """A POST whose body was read already. `stay`: how long the model is kept from now on."""
        return await self._forward(request, model, _Body(data), touch=True, stay=stay)

    async def pass_on(self, request: web.Request, model: str) -> web.StreamResponse:
        """A GET to a model that runs, which it neither loads nor keeps young."""
        async with self._lifecycle.lease(model, autoload=False, touch=False) as lease:
            return await self._exchange(request, lease, _Body(b""))

    async def ask(
        self, request: web.Request, model: str, *, body: bytes = b"", method: str = "", target: str = ""
    ) -> bytes | None:
        """A short question to a model, in the client's name; None when it does not run or has no answer in time."""
        try:
            async with (
                asyncio.timeout(ASK_TIMEOUT_S),
                self._lifecycle.lease(model, autoload=False, touch=False) as lease,
            ):
                reply = await self._send(request, lease, body, method=method, target=target)
                try:
                    answer = await _read_all(reply)
                    return answer if reply.status == OK else None
                finally:
                    reply.close()
        except (ApiError, CutOff, TimeoutError) as error:
            log.info("name=%s could not be asked for %s: %s", model, request.path, error)
            return None

    async def _forward(
        self,
        request: web.Request,
        model: str,
        body: _Body,
        conversation: Conversation | None = None,
        *,
        touch: bool,
        stay: Stay | None = None,
    ) -> web.StreamResponse:
        autoload = wants_autoload(request)
        async with self._lifecycle.lease(model, autoload=autoload, touch=touch, stay=stay) as lease:
            if self._fake_timing:
                await asyncio.sleep(FAKE_TIMING_S)
            return await self._exchange(request, lease, body, conversation)

    async def _exchange(
        self, request: web.Request, lease: Lease, body: _Body, conversation: Conversation | None = None
    ) -> web.StreamResponse:
        patience = request.app[LIMITS].timeout
        if conversation is not None:
            conversation.is_parked = False
            patience = min(patience or RESUMABLE_PATIENCE_S, RESUMABLE_PATIENCE_S)
        reply = await self._send(request, lease, body.data)
        body.data = b""
        try:
            if reply.complete or GIVEN_BODY in request:
                return _whole(reply, await _read_all(reply))
            return await _stream(request, reply, lease.model, patience, partial(self._lifecycle.confirm_end, lease))
        except ConnectionError:
            if conversation is not None and conversation.outlives_client:
                await _outlast(request, reply)
            raise
        finally:
            reply.close()

    async def _in_conversation(self, request: web.Request, name: str, model: str, body: _Body) -> web.StreamResponse:
        """Its client may leave and come back; what it had before under this name ends."""
        previous = self._conversations.stop(name)
        if previous and previous.request and not previous.is_parked and previous.model != model:
            target = f"{self._prefix}/v1/stream?conv_id={quote(name, safe='')}"
            await self.ask(request, previous.model, method="DELETE", target=target)
        work = partial(self._forward, request, model, body, touch=True)
        if request.content_type == FORM:
            outlives_client = streams_in_form(body.data, request.headers[hdrs.CONTENT_TYPE])
        else:
            outlives_client = streams_in_json(body.data)
        return await self._conversations.run(name, model, work, outlives_client=outlives_client)

    def find(self, name: str) -> str:
        if not name:
            raise InvalidRequest("model name is missing from the request")
        model = self._lifecycle.find(name) or self._lifecycle.find(name.removesuffix(LATEST))
        if model is None:
            raise ModelNotFound(name)
        return model

    async def _send(
        self, request: web.Request, lease: Lease, body: bytes, *, method: str = "", target: str = ""
    ) -> Reply:
        if not target:
            target = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
        try:
            return await self._upstream.send(lease.endpoint, method or request.method, target, _sent_on(request), body)
        except Unreachable as error:
            log.warning("name=%s cannot be reached: %s", lease.model, error)
            await self._lifecycle.confirm_end(lease)
            raise Unavailable(f"model '{lease.model}' cannot be reached: {error}") from None
        except Died as error:
            log.warning("name=%s ended before it answered: %s", lease.model, error)
            await self._lifecycle.confirm_end(lease)
            raise UpstreamGone(f"model '{lease.model}' ended before it answered: {error}") from None


def wants_autoload(request: web.Request) -> bool | None:
    """`?autoload=`: on for true or 1, off for anything else; None leaves it to --models-autoload."""
    given = request.query.get("autoload", "")
    return given in ("true", "1") if given else None


def _sent_on(request: web.Request) -> Iterable[Header]:
    dropped: frozenset[bytes] | set[bytes] = _NOT_SENT_ON
    if request.headers.get(hdrs.CONTENT_ENCODING):
        dropped = dropped | {b"content-encoding"}  # aiohttp has undone it
    if "," in (named := request.headers.get(hdrs.CONNECTION, "")) or named.lower() not in ("", "keep-alive", "close"):
        dropped = dropped | {name.strip().lower().encode() for name in named.split(",")}
    return [header for header in request.raw_headers if header[0].lower() not in dropped]


def _passed_back(reply: Reply) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in reply.headers:
        lower = name.lower()
        if lower not in _NOT_PASSED_BACK and not lower.startswith(b"access-control-"):
            headers.add(name.decode("latin-1"), value.decode("utf-8", "replace"))
    headers["X-Accel-Buffering"] = "no"
    return headers


def _whole(reply: Reply, body: bytes) -> web.Response:
    return web.Response(body=body, status=reply.status, reason=reply.reason, headers=_passed_back(reply))


async def _read_all(reply: Reply) -> bytes:
    chunks = []
    while chunk := await reply.read():
        chunks.append(chunk)
    return b"".join(chunks)


async def _outlast(request: web.Request, reply: Reply) -> None:
    """Its client is gone, but a stream that can be resumed goes on, and with it the lease."""
    if request.transport is not None:
        request.transport.close()
    with contextlib.suppress(CutOff):
        while await reply.read():
            pass


async def _stream(
    request: web.Request,
    reply: Reply,
    model: str,
    patience: float | None,
    confirm_end: Callable[[], Awaitable[None]],
) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, reason=reply.reason, headers=_passed_back(reply))
    await response.prepare(request)
    last = b"\n\n"
    try:
        while chunk := await reply.read():
            async with asyncio.timeout(patience):  # a client that stopped reading must not hold the lease for ever
                await response.write(chunk)
            last = chunk
    except TimeoutError:
        raise ConnectionAbortedError("the client does not read its answer") from None
    except CutOff as error:
        log.warning("name=%s ended in the middle of an answer: %s", model, error)
        await confirm_end()
        separator = _SEPARATORS.get(response.content_type)
        if separator is None:
            raise ConnectionAbortedError("the answer is incomplete") from None  # an honest end: no last chunk
        before = b"" if last.endswith(separator) else separator
        await response.write(before + _last_words(request, model, str(error)))
    await response.write_eof()
    return response


_SEPARATORS = {EVENT_STREAM_TYPE: b"\n\n", LINES_TYPE: b"\n"}
"""Streams that can say at their end what went wrong, and what stands between their messages."""


def _last_words(request: web.Request, model: str, why: str) -> bytes:
    error = UpstreamGone(f"model '{model}' ended in the middle of its answer: {why}")
    return error_event(error, envelope_of(request))
