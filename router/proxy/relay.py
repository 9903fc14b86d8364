"""Relay headers in both directions, the bytes of a response, and an error at its end if it was truncated.

These functions belong to `proxy`, which knows the model and has the lease. Nothing here waits for a model.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import hdrs, web
from llama_corral.common.base.errors import ApiError
from llama_corral.common.web.access_log import message_of, note_failure
from llama_corral.common.web.application import EVENT_STREAM_TYPE, LINES_TYPE, error_event
from llama_corral.common.web.envelopes import envelope_of
from llama_corral.common.web.request_body import encoding_of
from llama_corral.presets.variants import DEFAULTS_HEADER
from multidict import CIMultiDict

from .answer_model import AnswerRenamer
from .connection import Header, ResponseTruncated, WorkerResponse

OK = 200

_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
_DEFAULTS = DEFAULTS_HEADER.lower().encode()
_OF_PAGES = {b"origin", b"sec-fetch-site"}
_NOT_FORWARDED = _HOP_BY_HOP | _OF_PAGES | {b"host", b"content-length", b"accept-encoding", b"expect", _DEFAULTS}
"""`accept-encoding`: compression would delay the chunks of a response. `expect`: aiohttp has handled it already.
`_OF_PAGES`: only the router decides about pages; a worker does not see the `Host` that belongs to them.
`_DEFAULTS`: only the router may set a preset's defaults."""
_NOT_RETURNED = _HOP_BY_HOP | {b"server", b"date", b"content-length"}
"""Headers that our own response sets itself."""


def forwarded_headers(request: web.Request, defaults: str = "") -> Iterable[Header]:
    """Return the headers to forward to the worker. `defaults`: those of the requested preset."""
    dropped: frozenset[bytes] | set[bytes] = _NOT_FORWARDED
    if encoding_of(request):
        dropped = dropped | {b"content-encoding"}  # the body was decompressed; with an unknown encoding it was not
    if "," in (named := request.headers.get(hdrs.CONNECTION, "")) or named.lower() not in ("", "keep-alive", "close"):
        dropped = dropped | {name.strip().lower().encode("utf-8", "surrogateescape") for name in named.split(",")}
    headers = [header for header in request.raw_headers if header[0].lower() not in dropped]
    return [*headers, (_DEFAULTS, defaults.encode("ascii"))] if defaults else headers


def returned_headers(reply: WorkerResponse) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in reply.headers:
        lower = name.lower()
        if lower not in _NOT_RETURNED and not lower.startswith(b"access-control-"):
            headers.add(name.decode("latin-1"), value.decode("utf-8", "replace"))
    headers["X-Accel-Buffering"] = "no"
    return headers


def buffered_response(reply: WorkerResponse, body: bytes) -> web.Response:
    return web.Response(body=body, status=reply.status, reason=reply.reason, headers=returned_headers(reply))


async def read_all(reply: WorkerResponse) -> bytes:
    """Raises ResponseTruncated."""
    chunks = []
    while chunk := await reply.read():
        chunks.append(chunk)
    return b"".join(chunks)


def is_event_stream(reply: WorkerResponse) -> bool:
    return reply.status == OK and any(
        name.lower() == b"content-type" and value.startswith(EVENT_STREAM_TYPE.encode())
        for name, value in reply.headers
    )


def as_event(request: web.Request, reply: WorkerResponse, body: bytes) -> bytes:
    """Return a whole response, usually an error in the client's dialect, as one event for a stream that has begun."""
    before, behind = (b"data: ", b"\n\n") if reply.status == OK else envelope_of(request).in_stream
    return before + b"".join(body.splitlines()) + behind


async def finish_stream(response: web.StreamResponse, last: bytes) -> web.StreamResponse:
    await response.write(last)
    await response.write_eof()
    return response


async def drain_detached(request: web.Request, reply: WorkerResponse) -> None:
    """Read a resumable stream to its end without its client, so that it continues and keeps its lease."""
    if request.transport is not None:
        request.transport.close()
    with contextlib.suppress(ResponseTruncated):
        while await reply.read():
            pass


async def stream(
    request: web.Request,
    reply: WorkerResponse,
    keepalive: float | None,
    truncation_reason: Callable[[str], Awaitable[ApiError]],
    begun: web.StreamResponse | None = None,
    renamer: AnswerRenamer | None = None,
) -> web.StreamResponse:
    """Relay the worker's response to the client and return it. `begun`: a stream whose head was already sent.

    `keepalive`: seconds that one write may take. `renamer`: replaces the model's name in the response. A truncated
    stream ends with the error of `truncation_reason`. Raises ConnectionAbortedError if the client does not read, or if
    a truncated response cannot carry an error.
    """
    response = begun
    if response is None:
        response = web.StreamResponse(status=reply.status, reason=reply.reason, headers=returned_headers(reply))
        await response.prepare(request)
    last = b"\n\n"

    async def send(chunk: bytes) -> None:
        nonlocal last
        if chunk:
            async with asyncio.timeout(keepalive):  # a client that stopped reading must not keep the lease
                await response.write(chunk)
            last = chunk

    try:
        while chunk := await reply.read():
            await send(chunk if renamer is None else renamer.feed(chunk))
        if renamer is not None:
            await send(renamer.end())
    except TimeoutError:
        raise ConnectionAbortedError("the client does not read the response") from None
    except asyncio.CancelledError:  # many clients disconnect as soon as they have read an error
        note_failure(request, failure_at_end(last))
        raise
    except ResponseTruncated as error:
        why = await truncation_reason(str(error))
        note_failure(request, why.message)
        separator = _SEPARATORS.get(response.content_type)
        if separator is None:
            raise ConnectionAbortedError(why.message) from None  # no last chunk, so the client detects it
        before = b"" if last.endswith(separator) else separator
        await response.write(before + error_event(why, envelope_of(request)))
    else:
        note_failure(request, failure_at_end(last))
    await response.write_eof()
    return response


def failure_at_end(last: bytes) -> str:
    """Return the message of the error with which a worker ended a stream; "" if its last chunk is none."""
    if b'"error"' not in last:
        return ""
    return message_of(last.rstrip().rpartition(b"\n")[2].removeprefix(b"data: "))


_SEPARATORS = {EVENT_STREAM_TYPE: b"\n\n", LINES_TYPE: b"\n"}
"""Content types of streams that can end with an error message, and the separators of their messages."""
