"""The HTTP server base of router and worker: checks before a handler, error responses, and JSON responses.

Both programs create their aiohttp application with `application()` and answer with these functions; `request_body`
reads what clients send. This module defines no routes; `pages` adds those for browsers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from ..base.errors import (
    ApiError,
    AuthenticationFailed,
    InvalidRequest,
    NotFound,
    ServerFault,
    Unavailable,
)
from ..base.json_encoding import encode_json
from ..base.logs import one_line
from .access_log import CLIENT_LEFT, log_departure, note_failure
from .auth import ANY_ORIGIN, HAS_KEYS, ApiKeys, origin_policy
from .envelopes import OPENAI, Envelope, envelope_of
from .foreign_pages import CHECK_PAGE, ForeignPage, page_check
from .request_body import LIMITS, RequestLimits, let_client_continue
from .shutdown import RunningRequests

if TYPE_CHECKING:
    from ..base.common_settings import ServerSettings

log = logging.getLogger("corral.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Handler]
"""Method, path below `--api-prefix` (aiohttp's pattern syntax), handler. GET routes also handle HEAD."""

JSON_TYPE = "application/json; charset=utf-8"
EVENT_STREAM_TYPE = "text/event-stream"
LINES_TYPE = "application/x-ndjson"
"""One JSON object per line."""
HEALTH_PATHS = ("/health", "/v1/health")
PAGE_PATHS = ("/", "/index.html", "/sw.js", "/manifest.webmanifest", "/_app/version.json", "/build.json")
"""Served without a key and before the model is ready, so a browser can show that it is still loading."""
CONVERSATION_HEADER = "X-Conversation-Id"
"""Names a stream that continues after its client disconnects and can be resumed."""
DISCONNECTED = "the client disconnected"
RUNNING = web.AppKey("running", RunningRequests)
HIDDEN = "/."
"""In the path of a hidden file or folder. It needs a key, also if the page that it belongs to needs none."""
PUBLIC_HANDLERS: web.AppKey[set[Handler]] = web.AppKey("public_handlers", set)
"""Handlers of pages, which are served like PAGE_PATHS."""


# -- answers ---------------------------------------------------------------------------------------------------------


def json_response(value: object, status: int = 200) -> web.Response:
    return web.Response(body=encode_json(value), status=status, headers={hdrs.CONTENT_TYPE: JSON_TYPE})


def error_response(error: ApiError, envelope: Envelope = OPENAI) -> web.Response:
    body = envelope.body(error)
    response = json_response(body, envelope.status(error))
    if "request_id" in body:
        response.headers["Request-Id"] = body["request_id"]
    add_retry_hint(response, error)
    return response


def error_event(error: ApiError, envelope: Envelope = OPENAI) -> bytes:
    """Return the last event of a stream that failed."""
    before, behind = envelope.in_stream
    return before + encode_json(envelope.body(error)) + behind


def add_retry_hint(response: web.Response, error: ApiError) -> None:
    """Set the retry headers: the clients of OpenAI and Anthropic retry every 5xx twice unless a header forbids it."""
    if error.retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(error.retry_after)
    elif response.status >= 500:
        response.headers["X-Should-Retry"] = "false"


def query_text(request: web.Request, name: str) -> str:
    """Return a query parameter, "" if absent. Raise InvalidRequest for NUL, which would cut off paths or C strings."""
    value = request.query.get(name, "")
    if "\0" in value:
        raise InvalidRequest(f"query parameter '{name}' contains a NUL character")
    return value


def conversation_of(request: web.Request) -> str:
    """Return the conversation id of a request about a resumable stream."""
    conversation = query_text(request, "conv_id")
    if not conversation:
        raise InvalidRequest("Missing conversation id in path")
    return conversation


def event_stream(content_type: str = EVENT_STREAM_TYPE) -> web.StreamResponse:
    """Create a streaming response, by default for server-sent events, with a header that disables proxy buffering."""
    return web.StreamResponse(headers={hdrs.CONTENT_TYPE: content_type, "X-Accel-Buffering": "no"})


# -- before the handler ----------------------------------------------------------------------------------------------


def _translate(error: web.HTTPException, limits: RequestLimits) -> ApiError | web.HTTPException:
    if error.status in (404, 405):
        return NotFound()
    if error.status == 413:
        return limits.too_large()
    if 400 <= error.status < 500:
        return InvalidRequest(error.text or error.reason)
    return error


def _unreadable(error: web.RequestPayloadError) -> InvalidRequest:
    """Return the error for a body that is not encoded as its headers say; aiohttp's last line has the reason."""
    return InvalidRequest(f"the request body cannot be read: {str(error).strip().splitlines()[-1].strip()}")


async def _expect(request: web.Request) -> None:
    """Leave `100 Continue` to the code that reads the body, so that a refused client does not send one."""
    if not request.can_read_body:  # nothing will read it
        await let_client_continue(request)


def _always() -> bool:
    return True


def _allow(_: web.Request) -> None:
    """The check of a page whose request another program has checked."""


def _close_connection(request: web.Request, why: str, status: int = 200) -> web.Response:
    """Close the connection. Return a response, because aiohttp would log an exception with its traceback.

    The client gets none of it: `why` and `status` are for the access log.
    """
    note_failure(request, why)
    if request.transport:
        request.transport.close()
    return web.Response(status=status)


def _refuse_at_the_end(request: web.Request, message: str) -> web.Response:
    """Refuse a request during shutdown and close its connection; the client may retry on a new one."""
    response = error_response(Unavailable(message), envelope_of(request))
    response.force_close()
    return response


def application(
    settings: ServerSettings,
    *,
    is_ready: Callable[[], bool] = _always,
    public_paths: Sequence[str] = (),
    api_keys: ApiKeys | None = None,
    checks_pages: bool = True,
) -> web.Application:
    """Create an application whose responses, including errors, follow llama-server's conventions.

    Order: CORS origin; OPTIONS for any path; 503 before `is_ready()` and during shutdown; API key, or without keys the
    page that sent the request; handler.
    `public_paths` need no key, like the health paths. `api_keys`: those of the settings, if the caller has read them:
    their file may be a pipe. `checks_pages`: False below a router, which does that. Raises ConfigError.
    """
    keys = ApiKeys(settings) if api_keys is None else api_keys
    prefix = settings.http.api_prefix or ""
    pages = {*PAGE_PATHS, *(prefix + path for path in PAGE_PATHS)}
    public = {*pages, *HEALTH_PATHS, *(prefix + path for path in (*HEALTH_PATHS, *public_paths))}
    preflight = {
        "Access-Control-Allow-Credentials": "true" if settings.http.cors_credentials else "false",
        "Access-Control-Allow-Methods": settings.http.cors_methods,
        "Access-Control-Allow-Headers": settings.http.cors_headers,
    }

    def refusal(request: web.Request) -> ApiError | None:
        is_file = request.match_info.handler in public_handlers and HIDDEN not in request.path
        is_page = request.path in pages or is_file
        if not is_ready() and not is_page:
            return Unavailable()
        if keys and not is_page and request.path not in public and not keys.admit(request):
            return AuthenticationFailed()
        if not keys:
            try:
                check_page(request)
            except ForeignPage as error:
                return error
        return None

    def check_change(request: web.Request) -> None:
        if not keys:
            check_changing_page(request)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == hdrs.METH_OPTIONS:
            is_allowed = allowed_origin(request.headers.get(hdrs.ORIGIN)) is not None
            return web.Response(headers=preflight if is_allowed else None, content_type="text/html")
        if running.is_closed:
            return _refuse_at_the_end(request, running.refusal)
        if refused := refusal(request):
            return error_response(refused, envelope_of(request))
        arrived = asyncio.get_running_loop().time()
        try:
            with running.track():
                return await handler(request)
        except asyncio.CancelledError:
            log_departure(request, arrived, "aborted by the shutdown" if running.is_closed else DISCONNECTED)
            raise
        except ApiError as error:
            fault: ApiError | web.HTTPException = error
        except web.HTTPException as error:
            fault = _translate(error, limits)
        except web.RequestPayloadError as error:
            fault = _unreadable(error)
        except ConnectionError as error:  # the client disconnected, or its response cannot be completed
            if isinstance(error, ConnectionAbortedError):  # by us
                return _close_connection(request, str(error))
            return _close_connection(request, DISCONNECTED, CLIENT_LEFT)
        except Exception as error:  # last resort: a request must not end without a response
            log.exception("unexpected error in %s %s", request.method, one_line(request.path))
            fault = ServerFault(f"unexpected {type(error).__name__}, see the server's log")
        if request.writer.output_size > 0:  # the status was already sent: a second response would corrupt the first
            return _close_connection(request, str(fault))
        return error_response(fault, envelope_of(request)) if isinstance(fault, ApiError) else fault

    public_handlers: set[Handler] = set()
    limits, running = RequestLimits(settings.corral.max_body, settings.http.timeout or None), RunningRequests()
    allowed_origin = origin_policy(settings)
    check_page, check_changing_page = page_check(settings) if checks_pages else (_allow, _allow)

    async def decorate(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers[hdrs.SERVER] = "llama.cpp"
        origin = request.headers.get(hdrs.ORIGIN)
        allowed = allowed_origin(origin)
        if allowed == ANY_ORIGIN:
            headers["Access-Control-Allow-Origin"] = ANY_ORIGIN
            return
        headers[hdrs.VARY] = f"{headers[hdrs.VARY]}, {hdrs.ORIGIN}" if hdrs.VARY in headers else hdrs.ORIGIN
        if allowed is not None:
            headers["Access-Control-Allow-Origin"] = allowed
            if settings.http.cors_credentials:  # otherwise browsers hide the response from a page that sent cookies
                headers["Access-Control-Allow-Credentials"] = "true"

    app = web.Application(middlewares=[middleware], client_max_size=settings.corral.max_body)
    app[LIMITS] = limits
    app[RUNNING] = running
    app[HAS_KEYS] = lambda: bool(keys)
    app[CHECK_PAGE] = check_change
    app[PUBLIC_HANDLERS] = public_handlers
    app.on_response_prepare.append(decorate)
    return app


def add_routes(app: web.Application, settings: ServerSettings, routes: Sequence[Route]) -> None:
    prefix = settings.http.api_prefix or ""
    for method, path, handler in routes:
        if method == hdrs.METH_GET:
            app.router.add_get(prefix + path, handler, expect_handler=_expect)
        else:
            app.router.add_route(method, prefix + path, handler, expect_handler=_expect)
