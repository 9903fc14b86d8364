"""The access log: one line for each request that was answered, refused or given up by its client.

`listen` gives it to aiohttp, which calls it when a response has been sent, so no request waits for its line. Handlers
add what the response does not show: the model, and the failure of a stream whose status was already sent.
"""

from __future__ import annotations

import logging

import msgspec
from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger
from msgspec import Struct

from ..base.log_handlers import MAY_WAIT
from ..base.logs import one_line

log = logging.getLogger("corral.access")

CLIENT_LEFT = 499
"""Status in the log, as in nginx, of a request whose client disconnected before the end of its response."""
_POLLING = (hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS)
_LINE = "%s %s %s%s %d %.1f ms%s"
_HEALTH = "/health"
_STREAM = "/v1/stream"
"""Path where a client reads a generation again: the only GET that is more than a look at the server's state."""


class _Notes(Struct):
    """What the response does not show of a request."""

    model: str = ""
    failure: str = ""
    target: tuple[str, str] | None = None


_NOTES = web.RequestKey("notes", _Notes)
_NO_NOTES = _Notes()


def _notes(request: web.BaseRequest) -> _Notes:
    notes: _Notes = request.setdefault(_NOTES, _Notes())
    return notes


def note_model(request: web.BaseRequest, name: str) -> None:
    """Show the model that the request names. A later call replaces the name."""
    _notes(request).model = name


def note_failure(request: web.BaseRequest, message: str) -> None:
    """Show why the request failed, if the response's status does not say so."""
    _notes(request).failure = message


def note_target(request: web.BaseRequest, method: str, path: str) -> None:
    """Show the method and path of a request that could not be parsed."""
    _notes(request).target = (method, path)


class AccessLog(AbstractAccessLogger):
    """Logs `PEER METHOD PATH name=MODEL STATUS MILLISECONDS ms: MESSAGE`, without the query, which may have secrets."""

    level = logging.INFO
    """The level of all requests except those that only look at the server's state."""

    @property
    def enabled(self) -> bool:
        return log.isEnabledFor(self.level)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log one request. `time`: seconds since it arrived."""
        notes = request.get(_NOTES, _NO_NOTES)
        method, path = notes.target or (request.method, request.raw_path.partition("?")[0])
        level = min(self.level, level_of(method, path, response.status, has_failed=bool(notes.failure)))
        if not log.isEnabledFor(level):
            return
        name = f" name={_word(notes.model)}" if notes.model else ""
        failure = notes.failure or (failure_in(response) if response.status >= 400 else "")
        why = f": {one_line(failure)}" if failure else ""
        values = (request.remote or "unix", method, one_line(path), name, response.status, time * 1000, why)
        record = log.makeRecord(log.name, level, "", 0, _LINE, values, None)  # log.log() would search its caller
        setattr(record, MAY_WAIT, True)
        log.handle(record)


class WorkerAccessLog(AccessLog):
    """The access log of a router's worker: the router has already logged its requests."""

    level = logging.DEBUG


def level_of(method: str, path: str, status: int, *, has_failed: bool = False) -> int:
    """Return DEBUG for requests that programs repeat to watch the server, unless they fail; else INFO."""
    if path.endswith(_HEALTH):
        return logging.DEBUG
    is_fine = (status < 400 and not has_failed) or status == CLIENT_LEFT  # event streams end when their client leaves
    return logging.DEBUG if method in _POLLING and is_fine and not path.endswith(_STREAM) else logging.INFO


def failure_in(response: web.StreamResponse) -> str:
    """Return the message in the body of a refusal, in the format of any dialect; "" if it has none."""
    return message_of(response.body) if isinstance(response, web.Response) else ""


def message_of(body: object) -> str:
    """Return the message of an error's JSON body; "" if there is none."""
    if not isinstance(body, bytes | bytearray):
        return ""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ""
    if isinstance(value, dict) and isinstance(value.get("response"), dict):  # an event of OpenAI's Responses
        value = value["response"]
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def log_departure(request: web.Request, arrived: float, reason: str) -> None:
    """Log a request whose handler was cancelled, so that aiohttp sends no response. `arrived`: the loop's time."""
    noted = request.get(_NOTES, _NO_NOTES).failure
    note_failure(request, f"{noted}; {reason}" if noted else reason)
    request.protocol.log_access(request, web.Response(status=CLIENT_LEFT), arrived)


def _word(name: str) -> str:
    """Return a model's name as one word: in quotes if it has blanks or quotes. A quote in it is written `\\"`."""
    name = one_line(name)
    if " " not in name and '"' not in name:
        return name
    return '"' + name.replace('"', '\\"') + '"'
