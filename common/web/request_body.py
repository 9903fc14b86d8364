"""Read the bodies of requests: their limits, compressed bodies, and JSON.

`application` sets the limits and turns the errors into responses; handlers of router and worker call the functions
here. `json_values` limits the number of values in JSON, and `inflate` decompresses: aiohttp would do that on the event
loop, and for requests that were already refused.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, TypeVarTuple

import msgspec
from aiohttp import HttpVersion11, StreamReader, hdrs, web
from msgspec import Struct

from ..base.errors import BodyTooLarge, InvalidRequest
from .inflate import ENCODINGS, inflate
from .json_values import MAX_MARKS, check_values, count_marks

MAX_NESTING = 256
"""Maximum nesting of a request's JSON; Python's stack allows about three calls per level."""
GIVEN_BODY = web.RequestKey("body", bytes)
"""Request key with the body of a request that is part of another one. Its response must not be a stream."""
OWN_BODY = 64 << 10
"""Maximum bytes of a body that only names a model or gives a command. Honest ones have a few hundred bytes."""
LOOKUP_BODY = 1 << 20
"""Maximum bytes of `/v1/streams/lookup`. A chat client asks for all its conversations at once; 20,000 fit."""
TINY = 4 << 10
"""Bytes of a body up to which any work on it is done on the event loop: a thread would take longer."""
SMALL = 64 << 10
"""Bytes of JSON that are parsed on the event loop's thread: this takes less than a millisecond."""
DENSE_BODY = 16 << 20
"""Bytes of JSON up to which its marks are not counted: even if it has nothing else, to skip it takes 50 ms."""
_SLICE = 512 << 10
_CONTINUED = web.RequestKey("continued", bool)
"""Set when `100 Continue` was sent."""

Fields = TypeVar("Fields", bound=Struct)
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class RequestLimits(Struct, frozen=True):
    max_body: int
    timeout: float | None
    """Seconds without progress in receiving a request or sending a response; None: no limit."""

    def too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request body is larger than --max-body allows ({self.max_body} bytes)")


LIMITS = web.AppKey("limits", RequestLimits)
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def malformed(error: Exception) -> InvalidRequest:
    """Return the error for a body that is not JSON, with the decoder's reason, which names the byte position."""
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return InvalidRequest(f"the request body cannot be parsed as JSON: {reason}")


def _is_too_deep(value: object, n_brackets: int) -> bool:
    """Return True if a value has more than MAX_NESTING levels, since code that reads requests may be recursive."""
    if n_brackets <= MAX_NESTING:
        return False
    level = [value]
    for _ in range(MAX_NESTING):
        inside = itertools.chain.from_iterable(_inside(container) for container in level)
        level = [item for item in inside if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _inside(container: object) -> Iterable[object]:
    if isinstance(container, dict):
        return container.values()
    return container if isinstance(container, list) else ()


async def let_client_continue(request: web.Request) -> None:
    """Send `100 Continue` if the client waits for it. Called by everything that reads a body, before it reads.

    A request that is refused without its body gets only the refusal. Other expectations are ignored, as in
    llama-server.
    """
    asks = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    if asks and request.version >= HttpVersion11 and not request.get(_CONTINUED):
        request[_CONTINUED] = True
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no response has begun


def encoding_of(request: web.Request) -> str:
    """Return the compression of the body; empty if it is sent as it is, or has an encoding that is not known."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").lower()
    return encoding if encoding in ENCODINGS else ""


async def read_body(request: web.Request, *, most: int = 0) -> bytes:
    """Return the whole body, decompressed; at most `most` bytes, or as many as --max-body allows if that is 0.

    Raise BodyTooLarge, if possible before the body is read, and InvalidRequest on a timeout or a wrong compression.
    """
    limits = request.app[LIMITS]
    most = min(most or limits.max_body, limits.max_body)
    if GIVEN_BODY in request:
        given = request[GIVEN_BODY]
        if len(given) > most:
            raise _too_large(request, most)
        return given
    if (request.content_length or 0) > most:
        raise _too_large(request, most)
    await let_client_continue(request)
    if request.content.is_eof():
        body = await _read_all(request, most)
    else:
        try:
            async with asyncio.timeout(limits.timeout):
                body = await _read_all(request, most)
        except TimeoutError:
            raise InvalidRequest(f"the request body did not arrive within {limits.timeout} s") from None
    if body and (encoding := encoding_of(request)):
        return await _inflated(request, body, encoding, most)
    return body


def _too_large(request: web.Request, most: int) -> BodyTooLarge:
    limits = request.app[LIMITS]
    if most == limits.max_body:
        return limits.too_large()
    return BodyTooLarge(f"the request body is larger than {request.path} allows ({most} bytes)")


async def _read_all(request: web.Request, most: int) -> bytes:
    """Read the body. Unlike `request.read()`, keep no copy in the request, which lives as long as its response."""
    chunks, size = [], 0
    while chunk := await request.content.readany():
        size += len(chunk)
        if size > most:
            raise _too_large(request, most)
        chunks.append(chunk)
    return b"".join(chunks)


async def _inflated(request: web.Request, body: bytes, encoding: str, most: int) -> bytes:
    try:
        if len(body) <= TINY:  # then the ratio allows at most a megabyte
            return inflate(body, encoding, most)
        return await asyncio.to_thread(inflate, body, encoding, most)
    except OverflowError:
        raise _too_large(request, most) from None


async def uncompressed(request: web.Request) -> web.Request:
    """Return the request with its body decompressed, for aiohttp's reader of forms. Raise as `read_body` does."""
    if not encoding_of(request):
        return request
    body = await read_body(request)
    stream = StreamReader(request.protocol, len(body), loop=asyncio.get_running_loop())
    stream.feed_data(body)
    stream.feed_eof()
    headers = request.headers.copy()
    for name in (hdrs.CONTENT_ENCODING, hdrs.CONTENT_LENGTH):
        headers.popall(name, None)
    plain = request.clone(headers=headers)
    plain._payload = stream  # aiohttp has no public way to replace a body
    return plain


async def read_unmarked_body(request: web.Request, *, most: int = 0) -> bytes:
    """Read the body and remove the byte order mark that some Windows programs write before JSON."""
    return (await read_body(request, most=most)).removeprefix(codecs.BOM_UTF8)


async def read_json(request: web.Request, *, most: int = 0) -> Any:
    """Parse the body as JSON and ignore the content type (curl -d sends JSON as a form)."""
    body = await read_unmarked_body(request, most=most)
    return await asyncio.to_thread(_parsed, body) if len(body) > SMALL else _parsed(body)


def _parsed(body: bytes) -> Any:
    n_brackets = check_values(body)
    try:
        value = msgspec.json.decode(body)
    except NOT_JSON as error:
        raise malformed(error) from None
    if _is_too_deep(value, n_brackets):
        raise malformed(RecursionError())
    return value


async def read_object(request: web.Request, *, most: int = 0) -> dict[str, Any]:
    value = await read_json(request, most=most)
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object")
    return value


async def off_the_loop(work: Callable[[*Arguments], Result], *args: *Arguments, at_most: int = TINY) -> Result:
    """Return the result of `work`, on a thread if an argument has more than `at_most` bytes."""
    if all(len(argument) <= at_most for argument in args if isinstance(argument, bytes)):
        return work(*args)
    return await asyncio.to_thread(work, *args)


async def read_skipped_json(request: web.Request) -> bytes:
    """Return a body of which only some fields are read. Raise as `read_body` does, and BodyTooLarge for dense JSON."""
    body = (await read_body(request)).removeprefix(codecs.BOM_UTF8)
    if len(body) > DENSE_BODY and GIVEN_BODY not in request:  # a given body was checked with the one that contains it
        await refuse_costly_json(body)
    return body


async def refuse_costly_json(body: bytes) -> None:
    """Raise BodyTooLarge if it would take too long to parse: for so long nothing else could run, even on threads.

    Bodies of many megabytes consist of a few long texts (images, audio), and not of millions of values.
    """
    n_marks = 0
    for start in range(0, len(body), _SLICE):
        n_marks += count_marks(body[start : start + _SLICE])
        if n_marks > MAX_MARKS:
            raise BodyTooLarge(
                f"the request body has more than {MAX_MARKS} commas, colons, brackets and backslashes (also inside of "
                f"texts) in {len(body)} bytes of JSON"
            )
        await asyncio.sleep(0)


async def read_fields(request: web.Request, kind: type[Fields], *, most: int = OWN_BODY) -> Fields:
    """Return the fields of `kind` in a JSON object of at most `most` bytes, without building its other values.

    Raise InvalidRequest for another JSON value.
    """
    return fields_in(await read_unmarked_body(request, most=most), kind)


def fields_in(body: bytes, kind: type[Fields]) -> Fields:
    """Return the fields of `kind`, all of which accept any type, in a JSON object. Raise InvalidRequest."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        raise InvalidRequest("the request body must be a JSON object") from None
    except NOT_JSON as error:
        raise malformed(error) from None
