"""aiohttp's client connection with one change: how it handles a syntax error inside a request's body.

aiohttp queues such an error as an additional request, which is answered after the first one; but the first one waits
for the rest of its body. Here the error ends that body, so its request gets an error response in its own dialect.
Created by `listen` for router and worker.
"""

from __future__ import annotations

import contextlib
import re
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from ..base.errors import InvalidRequest
from .access_log import note_failure, note_target
from .application import error_response
from .envelopes import OPENAI, Envelope, envelope_of

_TARGET = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1")


class ClientConnection(web.RequestHandler):
    _arriving: StreamReader | None = None
    """The body of the latest request."""
    _target: tuple[str, str] | None = None
    """Method and path of a request that arrived with its syntax error, so aiohttp made no request object for it."""

    def data_received(self, data: bytes) -> None:
        before = len(self._messages)
        super().data_received(data)
        if len(self._messages) == before:
            return
        message, body = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._arriving = body
            return
        if self._arriving is not None and not self._arriving.is_eof():
            self._arriving.set_exception(web.RequestPayloadError(_reason(message.exc)))
        elif found := _TARGET.match(data):
            self._target = (found[1].decode(), found[2].decode())

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer invalid HTTP with an error message, and close the connection."""
        if not isinstance(exc, HttpProcessingError) or request.writer.output_size > 0:
            note_failure(request, str(exc or message or ""))
            return super().handle_error(request, status, exc, message)
        method, target = self._target or ("-", "-")
        note_target(request, method, target.partition("?")[0])
        refusal = InvalidRequest(f"the request cannot be read: {_reason(exc)}")
        response = error_response(refusal, self._envelope(request))
        response.headers[hdrs.SERVER] = "llama.cpp"
        response.force_close()
        return response

    def _envelope(self, request: web.BaseRequest) -> Envelope:
        with contextlib.suppress(ValueError):
            if self._target and isinstance(request, web.Request):
                return envelope_of(request.clone(rel_url=self._target[1]))
        return OPENAI


def _reason(error: BaseException) -> str:
    """Return the first line of the error; the parser's other lines only show the position."""
    text = error.message if isinstance(error, HttpProcessingError) else str(error)
    return text.strip().partition("\n")[0].rstrip(":")
