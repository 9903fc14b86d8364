"""Forward requests to workers: find the model, keep a lease until the response has ended, relay the bytes.

The routes of `app` call it. It requests leases from `lifecycle` and sends requests with `pool`. Of a body it reads only
the model's name, `stream`, and how long the model is kept. For a worker nothing is changed; for an external program the
path and the model's name are, and in its answers the name is replaced too.
When a client disconnects, its handler is cancelled, the connection to the worker is closed, and the worker ends the
generation. A stream that the client can resume runs in a separate task instead (`conversations`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from urllib.parse import quote

from aiohttp import hdrs, web
from llama_corral.common.base.errors import ApiError, InvalidRequest, ModelNotFound, Unavailable, WorkerGone
from llama_corral.common.base.logs import one_line
from llama_corral.common.web.access_log import message_of, note_failure, note_model
from llama_corral.common.web.application import CONVERSATION_HEADER, error_event, query_text
from llama_corral.common.web.envelopes import envelope_of
from llama_corral.common.web.foreign_pages import refuse_foreign_page
from llama_corral.common.web.ollama_models import LATEST
from llama_corral.common.web.request_body import (
    GIVEN_BODY,
    LIMITS,
    SMALL,
    TINY,
    off_the_loop,
    read_skipped_json,
    read_unmarked_body,
)
from msgspec import Struct

from ..lifecycle.lifecycle import Lifecycle
from ..models.queue import Lease
from ..placement.snapshot import Retention
from ..placement.states import ModelState
from .answer_model import AnswerRenamer, content_type_of
from .connection import ConnectionLost, ResponseTruncated, Unreachable, WorkerResponse
from .conversations import Conversation, Conversations
from .model_field import (
    target_in_form,
    target_in_json,
    with_model,
    with_model_in_form,
)
from .pool import ConnectionPool
from .relay import (
    OK,
    as_event,
    buffered_response,
    drain_detached,
    finish_stream,
    forwarded_headers,
    is_event_stream,
    read_all,
    stream,
)
from .sse_keepalive import NO_KEEPALIVE, KeepalivePolicy, KeepaliveStream

log = logging.getLogger("corral.router")

FAKE_TIMING_S = 2.0
"""With LLAMA_SERVER_DEBUG_FAKE_TIMING, seconds for which each request keeps its lease before it is forwarded."""

ASK_TIMEOUT_S = 1.0
"""Timeout in seconds of a query that a worker answers from memory. llama-server uses a quarter of that."""
RESUME_WAIT_S = 30.0
"""Seconds without reading after which a client is disconnected from a stream that it can resume."""
FORM = "multipart/form-data"


class _Body(Struct):
    """A request's body. It is emptied once sent, since images are large and the response may take many minutes."""

    data: bytes
    names_model: bool = True
    """False if it names no model, so that the default model is used."""
    streams: bool = False
    """True if it asks for a stream."""


class Proxy:
    """The handlers of all proxied routes."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        pool: ConnectionPool,
        conversations: Conversations,
        *,
        prefix: str = "",
        fake_timing: bool = False,
        keepalive_policy: KeepalivePolicy = NO_KEEPALIVE,
        default_model: str = "",
    ) -> None:
        """`prefix`: the API prefix, the same for the router and the workers.

        `keepalive_policy`: when a stream begins before its response. `default_model`: for requests that name none.
        """
        self._lifecycle = lifecycle
        self._pool = pool
        self._conversations = conversations
        self._prefix = prefix
        self._fake_timing = fake_timing
        self._keepalive_policy = keepalive_policy
        self._default_model = default_model
        self._is_ending = False

    async def by_query(self, request: web.Request) -> web.StreamResponse:
        """Forward a GET. The model is `?model=`. Without it the default model is asked only if it is loaded.

        A page of another site may not load a model with it.
        """
        name, autoload = query_text(request, "model"), wants_autoload(request)
        note_model(request, name)
        if not name and autoload is None:
            autoload = False
        model = self.find(name)
        view = self._lifecycle.view(model)
        if autoload is not False and (view is None or view.status != ModelState.LOADED.value):
            refuse_foreign_page(request)
        return await self._forward(request, model, _Body(b""), touch=False, autoload=autoload)

    async def by_body(self, request: web.Request) -> web.StreamResponse:
        """Forward a POST. The body names the model, or else `?model=` (for a JSON array or an empty body)."""
        if request.content_type == FORM:
            body = _Body(await read_unmarked_body(request))
            target = await off_the_loop(target_in_form, body.data, request.headers[hdrs.CONTENT_TYPE])
        else:
            body = _Body(await read_skipped_json(request))
            target = target_in_json(body.data)
        body.streams = target.streams
        name = target.model or query_text(request, "model")
        note_model(request, name)
        model = self.find(name)
        body.names_model = bool(name)
        retention = Retention.of_keep_alive(target.keep_alive)
        if conversation := request.headers.get(CONVERSATION_HEADER, ""):
            return await self._in_conversation(request, conversation, model, body, retention)
        autoload = wants_autoload(request)
        return await self._forward(request, model, body, touch=True, retention=retention, autoload=autoload)

    async def forward(
        self,
        request: web.Request,
        model: str,
        data: bytes,
        *,
        names_model: bool = True,
        streams: bool = False,
        retention: Retention | None = None,
    ) -> web.StreamResponse:
        """Forward a POST whose body was already read.

        `names_model`: False if the body names none. `streams`: True if it asks for a stream.
        `retention`: how long the model is kept loaded from now on.
        """
        autoload, body = wants_autoload(request), _Body(data, names_model, streams)
        return await self._forward(request, model, body, touch=True, retention=retention, autoload=autoload)

    async def forward_if_running(self, request: web.Request, model: str) -> web.StreamResponse:
        """Forward a GET to a running model. It does not load the model and does not count as a use."""
        note_model(request, model)
        async with self._lifecycle.lease(model, autoload=False, touch=False) as lease:
            return await self._exchange(request, lease, _Body(b""))

    async def query(
        self, request: web.Request, model: str, *, body: bytes = b"", method: str = "", target: str = ""
    ) -> bytes | None:
        """Query a model with the client's headers. Return None if it does not run or does not answer in time."""
        try:
            async with (
                asyncio.timeout(ASK_TIMEOUT_S),
                self._lifecycle.lease(model, autoload=False, touch=False) as lease,
            ):
                reply = await self._send(request, lease, _Body(body), method=method, target=target)
                try:
                    answer = await read_all(reply)
                    return answer if reply.status == OK else None
                finally:
                    reply.close()
        except (ApiError, ResponseTruncated, TimeoutError) as error:
            log.info("name=%s: the query of %s failed: %s", model, one_line(request.path), error)
            return None

    def abort_all(self) -> None:
        """Abort all responses with an error to their clients, because the router shuts down."""
        self._is_ending = True
        self._pool.abort_all("the router is shutting down")

    async def _forward(
        self,
        request: web.Request,
        model: str,
        body: _Body,
        conversation: Conversation | None = None,
        *,
        touch: bool,
        autoload: bool | None,
        retention: Retention | None = None,
    ) -> web.StreamResponse:
        note_model(request, model)
        keepalive_stream = KeepaliveStream(
            request,
            model,
            self._keepalive_policy,
            body.streams,
            partial(self._wait_description, model),
        )
        try:
            async with self._lifecycle.lease(model, autoload=autoload, touch=touch, retention=retention) as lease:
                if self._fake_timing:
                    await asyncio.sleep(FAKE_TIMING_S)
                return await self._exchange(request, lease, body, conversation, keepalive_stream)
        except ApiError as error:
            if (begun := await keepalive_stream.end()) is None:
                raise
            note_failure(request, error.message)
            return await finish_stream(begun, error_event(error, envelope_of(request)))
        finally:
            await keepalive_stream.end()

    def _wait_description(self, model: str) -> str:
        """Return why the client has to wait, for a comment that a user may see."""
        view = self._lifecycle.view(model)
        if view is None or view.status == ModelState.LOADED.value:
            return "waiting for the first token"
        if view.status != ModelState.LOADING.value:
            return "waiting in the queue"
        value = view.progress.get("value")
        return f"loading, {value:.0%}" if isinstance(value, float) else "loading"

    async def _exchange(
        self,
        request: web.Request,
        lease: Lease,
        body: _Body,
        conversation: Conversation | None = None,
        keepalive_stream: KeepaliveStream | None = None,
    ) -> web.StreamResponse:
        keepalive = request.app[LIMITS].timeout
        if conversation is not None:
            conversation.is_parked = False
            keepalive = min(keepalive or RESUME_WAIT_S, RESUME_WAIT_S)
        reply = await self._send(request, lease, body)
        body.data = b""
        outcome = reply.status

        async def truncated(why: str) -> ApiError:
            nonlocal outcome
            outcome = WorkerGone.status
            return await self._truncation_reason(lease, why)

        renamer = (
            AnswerRenamer(shown, content_type_of(reply.headers)) if (shown := _name_to_show(lease, reply)) else None
        )
        try:
            begun = await keepalive_stream.end() if keepalive_stream is not None else None
            needs_whole = reply.complete or GIVEN_BODY in request or (renamer is not None and renamer.needs_whole)
            if begun is None and needs_whole:
                return buffered_response(reply, await _whole_answer(reply, renamer))
            if begun is not None and not is_event_stream(reply):
                answer = await _whole_answer(reply, renamer)
                note_failure(request, message_of(answer))
                return await finish_stream(begun, as_event(request, reply, answer))
            return await stream(request, reply, keepalive, truncated, begun, renamer)
        except ResponseTruncated as error:
            raise await truncated(str(error)) from None
        except ConnectionError:
            if conversation is not None and conversation.outlives_client:
                await drain_detached(request, reply)
            raise
        finally:
            reply.close()
            self._report_answer(lease, outcome)

    async def _in_conversation(
        self, request: web.Request, name: str, model: str, body: _Body, retention: Retention | None
    ) -> web.StreamResponse:
        """Forward a POST that can be resumed. The previous request of the conversation is ended."""
        previous, owner = self._conversations.find(name), ""
        if previous and previous.request and not previous.is_parked and previous.model != model:
            owner = previous.model
        target = f"{self._prefix}/v1/stream?conv_id={quote(name, safe='', errors='surrogateescape')}"
        autoload = wants_autoload(request)

        async def work(conversation: Conversation) -> web.StreamResponse:
            if owner:
                await self.query(request, owner, method="DELETE", target=target)
            return await self._forward(
                request, model, body, conversation, touch=True, retention=retention, autoload=autoload
            )

        return await self._conversations.run(name, model, work, outlives_client=body.streams)

    def find(self, name: str) -> str:
        """Return the canonical name for a name, an alias, or one of these with `:latest`. Raises ApiError."""
        name = name or self._default_model
        if not name:
            raise InvalidRequest("model name is missing from the request")
        model = find_model(self._lifecycle, name)
        if model is None:
            raise ModelNotFound(name)
        return model

    async def _send(
        self, request: web.Request, lease: Lease, body: _Body, *, method: str = "", target: str = ""
    ) -> WorkerResponse:
        if not target:
            target = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
        data = body.data
        if (backend := lease.preset.backend) is not None:
            target = backend.path + target.removeprefix(self._prefix)
            if name := backend.model_name or ("" if body.names_model else lease.model):
                at_most = TINY if request.content_type == FORM else SMALL
                data = await off_the_loop(_renamed, request, data, name, at_most=at_most)  # the program may require it
        try:
            headers = forwarded_headers(request, lease.preset.defaults)
            return await self._pool.send(lease.endpoint, method or request.method, target, headers, data)
        except Unreachable as error:
            log.warning("name=%s cannot be reached: %s", lease.model, error)
            why = await self._lifecycle.wait_for_exit(lease)
            if not why and _has_lost_socket(lease):
                self._lifecycle.unload_when_idle(lease.model)  # its socket was deleted: the next worker has another one
            self._report_answer(lease, WorkerGone.status)
            raise Unavailable(f"model '{lease.model}' cannot be reached: {why or error}") from None
        except ConnectionLost as error:
            if self._is_ending:
                raise Unavailable("the router is shutting down") from None
            log.warning("name=%s ended before it answered: %s", lease.model, error)
            why = await self._lifecycle.wait_for_exit(lease) or str(error)
            self._report_answer(lease, WorkerGone.status)
            raise WorkerGone(f"model '{lease.model}' ended before it answered: {why}") from None

    def _report_answer(self, lease: Lease, status: int) -> None:
        if _is_program(lease):
            self._lifecycle.report_answer(lease, status)

    async def _truncation_reason(self, lease: Lease, why: str) -> ApiError:
        """Return the error for the client of a truncated response."""
        if self._is_ending:
            return Unavailable("the router is shutting down")
        log.warning("name=%s ended in the middle of an answer: %s", lease.model, why)
        why = await self._lifecycle.wait_for_exit(lease) or why
        return WorkerGone(f"model '{lease.model}' ended in the middle of its answer: {why}")


def _has_lost_socket(lease: Lease) -> bool:
    return lease.preset.backend is None and not os.path.exists(lease.endpoint)


def find_model(lifecycle: Lifecycle, name: str) -> str | None:
    """Return the canonical name for a name, an alias, or one of these with `:latest`; None if no model has it."""
    return lifecycle.find(name) or lifecycle.find(name.removesuffix(LATEST))


def _is_program(lease: Lease) -> bool:
    """Return True if an external program answers a request that uses the model."""
    return lease.touch and lease.preset.backend is not None


def _name_to_show(lease: Lease, reply: WorkerResponse) -> str:
    """Return the name that replaces an external program's name for its model in the answer; empty: none."""
    return lease.preset.name if _is_program(lease) and reply.status == OK else ""


def wants_autoload(request: web.Request) -> bool | None:
    """Return True for `?autoload=true` or `=1`, False for other values, None (use --models-autoload) if missing."""
    given = request.query.get("autoload", "")
    return given in ("true", "1") if given else None


async def _whole_answer(reply: WorkerResponse, renamer: AnswerRenamer | None) -> bytes:
    """Raises ResponseTruncated."""
    answer = await read_all(reply)
    return answer if renamer is None else renamer.whole(answer)


def _renamed(request: web.Request, body: bytes, model: str) -> bytes:
    """Return the body with the model's name replaced by the external program's name for it."""
    if request.content_type == FORM:
        return with_model_in_form(body, request.headers[hdrs.CONTENT_TYPE], model)
    return with_model(body, model)
