"""aiohttp's client connection with limits for clients that send nothing, and with half-closed connections.

- A syntax error inside a body: aiohttp queues it as an additional request, which is answered after the first one; but
  the first one waits for the rest of its body. Here the error ends that body, so its request gets an error response in
  its own dialect.
- Time limits for a request's head and for its body, which aiohttp does not have.
- A client that ends its sending side after a complete request (SHUT_WR) gets its answer. A client that closed its
  connection looks the same until something is sent to it, so it is probed with `100 Continue`, which every HTTP/1.1
  client skips: a closed connection answers with a reset. HTTP/1.0 knows no such probe; those clients are served if
  their answer begins within HALF_CLOSED_S. An end that comes while the response is sent counts as a disconnect, and any
  end with TLS: nothing can be sent between two parts of a response to learn whether the client still reads.

Created by `listen` for router and worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from http import HTTPStatus
from typing import cast

from aiohttp import HttpVersion, HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _ErrInfo

from ..base.errors import InvalidRequest, Unavailable
from .access_log import note_failure, note_target
from .application import error_response
from .envelopes import OPENAI, Envelope, envelope_of
from .room import has_room

_TARGET = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1")

HEAD_S = 30.0
"""Seconds for a new connection to send its first head, and for any head from its first byte to its end."""
BODY_S = 60.0
"""Seconds for a body, plus one for each BODY_RATE bytes that arrived: a slower client is refused."""
BODY_RATE = 1024
HALF_CLOSED_S = 1.0
"""Longest time in seconds between two probes of a half-closed connection, and from the end of an HTTP/1.0 client's side
to the begin of its answer."""
PROBE_S = 0.05
"""Seconds until the first probe; the pause doubles until HALF_CLOSED_S."""
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REFUSAL = error_response(Unavailable("too many connections"))


class ClientConnection(web.RequestHandler):
    _arriving: StreamReader | None = None
    """The body of the latest request."""
    _target: tuple[str, str] | None = None
    """Method and path of a request that arrived with its syntax error, so aiohttp made no request object for it."""
    _timer: asyncio.TimerHandle | None = None
    """Ends a head or a body that does not arrive, or looks after a half-closed connection: never two of these."""
    _has_begun = False
    """True if a part of a head has arrived."""
    _body_began = 0.0
    _body_size = 0
    _version: HttpVersion = HttpVersion11
    """HTTP version of the latest request."""

    # -- begin -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tcp = transport.get_extra_info("socket")
        if tcp is not None and not has_room(tcp.fileno(), self._all_connections):
            head = f"HTTP/1.1 503 Service Unavailable\r\n{hdrs.CONNECTION}: close\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in _REFUSAL.headers.items())
            body = cast(bytes, _REFUSAL.body)
            cast(asyncio.Transport, transport).write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            transport.close()
        super().connection_made(transport)
        self._timer = self._loop.call_later(HEAD_S, self._end_head)

    def _all_connections(self) -> list[ClientConnection]:
        return cast("list[ClientConnection]", self._manager.connections if self._manager is not None else [])

    @property
    def idle_since(self) -> tuple[bool, float] | None:
        """If the client has to send something: whether that is the rest of a body, and since when; otherwise None."""
        is_in_body = self._is_body_arriving()
        if is_in_body:
            return (True, self._body_began)
        return (False, self._next_keepalive_close_time) if self._is_idle() else None

    def give_up(self) -> None:
        """Close the connection at once, to have its descriptor."""
        if self.transport is not None:
            self.transport.abort()

    # -- data --------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        before = len(self._messages)
        super().data_received(data)
        if len(self._messages) == before:
            self._body_size += len(data)
            if data and self._is_idle():
                self._has_begun = True
                if self._timer is None:
                    self._timer = self._loop.call_later(HEAD_S, self._end_head)
            return
        self._stop_timer()
        message, body = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._arriving, self._version = body, message.version
            if not body.is_eof():
                self._body_began, self._body_size = self._loop.time(), len(data)
                self._timer = self._loop.call_later(BODY_S, self._check_body)
            return
        if self._arriving is not None and not self._arriving.is_eof():
            self._arriving.set_exception(web.RequestPayloadError(_reason(message.exc)))
        elif found := _TARGET.match(data):
            self._target = (found[1].decode(), found[2].decode())

    def _is_body_arriving(self) -> bool:
        return self._arriving is not None and not self._arriving.is_eof()

    def _is_idle(self) -> bool:
        """Return True if the connection waits for a head."""
        return self._waiter is not None and not self._waiter.done() and not self._upgraded

    def _stop_timer(self) -> None:
        self._has_begun = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_head(self) -> None:
        """Refuse a request whose head did not arrive in time; close a connection that has sent nothing."""
        self._timer = None
        if not self._is_idle() or self._waiter is None:
            return
        if not self._has_begun:
            self.force_close()
            return
        late = HttpProcessingError(code=400, message=f"its head did not arrive within {HEAD_S:g} s")
        info = _ErrInfo(status=400, exc=late, message=late.message)
        self._messages.append((info, EMPTY_PAYLOAD))
        self._waiter.set_result(None)

    def _check_body(self) -> None:
        """End a body that arrives too slowly, so that its request is refused; otherwise check again later."""
        self._timer = None
        if self._arriving is None or self._arriving.is_eof():
            if self._has_begun and self._is_idle():  # the next head
                self._timer = self._loop.call_later(HEAD_S, self._end_head)
            return
        now = self._loop.time()
        if self._reading_paused:  # by us: the handler does not read
            self._body_began = now
        end = self._body_began + BODY_S + self._body_size / BODY_RATE
        if now < end:
            self._timer = self._loop.call_at(end, self._check_body)
            return
        why = f"only {self._body_size} bytes arrived within {now - self._body_began:.0f} s"
        self._arriving.set_exception(web.RequestPayloadError(why))

    # -- end ---------------------------------------------------------------------------------------------------------

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Handle the end of what the client sends. Return True to keep the connection for its answer."""
        super().eof_received()
        if self.transport is None or self._is_body_arriving() or self._is_idle() or self._is_answering():
            return None
        if self._upgraded or self.ssl_context is not None:
            return None
        n_running = 0 if self._waiter else 1
        if len(self._messages) + n_running == 1 and not self._buffer_paused:
            self.close()  # after this answer
        self._stop_timer()
        self._timer = self._loop.call_later(PROBE_S, self._check_half_closed, PROBE_S, PROBE_S)
        return True

    def _is_answering(self) -> bool:
        """Return True if a response has begun."""
        if self._current_request is None:  # its handler has returned, or has not begun
            return self._request_in_progress
        return self._current_request.writer.output_size > 0

    def _check_half_closed(self, pause: float, waited: float) -> None:
        """Close the connection if its client has left, or if all requests are answered; otherwise check again later.

        `pause`: the last one, in seconds. `waited`: seconds since the client ended its side.
        """
        self._timer = None
        transport = self.transport
        if transport is None or transport.is_closing():  # all is answered: the rest of it is being sent
            return
        if self._is_idle():
            transport.close()  # after the rest of the last answer is sent
            return
        is_newer, is_answering = self._version >= HttpVersion11, self._is_answering()
        if self._has_left() or not (is_newer or is_answering or waited < HALF_CLOSED_S):
            transport.abort()
            return
        if is_newer and self._current_request is not None and not is_answering:
            transport.write(_PROBE)
        pause = min(2 * pause, HALF_CLOSED_S)
        self._timer = self._loop.call_later(pause, self._check_half_closed, pause, waited + pause)

    def _has_left(self) -> bool:
        """Return True if the client has answered something that it was sent with a reset."""
        tcp = self.transport.get_extra_info("socket") if self.transport is not None else None
        return tcp is not None and tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    # -- errors ------------------------------------------------------------------------------------------------------

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
