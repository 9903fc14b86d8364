"""Define the router's HTTP routes and their handlers.

A route is answered by the router, forwarded by `?model=`, or forwarded by the body's field "model". Every other path
is a 404.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

from aiohttp import web
from llama_corral.common.tools.routes import tool_routes
from llama_corral.common.web.application import Route, add_routes, application
from llama_corral.common.web.auth import ApiKeys
from llama_corral.common.web.pages import add_pages
from llama_corral.common.web.response_store import ResponseStore
from llama_corral.common.web.stored_responses import RESPONSES, keep_until_cleanup
from llama_corral.common.web.stored_responses import ROUTES as STORED
from llama_corral.common.web.unsupported import UNSUPPORTED
from llama_corral.common.web.vertex import Vertex
from llama_corral.presets.options.table import environment_without_keys

from .handlers import Handlers
from .library import Library, ReadPresets
from .lifecycle.lifecycle import Lifecycle
from .ollama import Ollama
from .ollama_pull import OllamaPull
from .proxy.conversations import Conversations
from .proxy.pool import ConnectionPool
from .proxy.proxy import Proxy
from .proxy.sse_keepalive import KeepalivePolicy
from .streams import Streams

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings

ABORT_RESPONSES: web.AppKey[Callable[[], None]] = web.AppKey("cut")
"""Function that aborts the responses of all workers."""

DESCRIBE_STATE: web.AppKey[Callable[[], str]] = web.AppKey("describe")
"""Returns the whole state of the router as text."""

BY_QUERY = ("/metrics", "/slots", "/lora-adapters")

BY_BODY = (
    *("/completion", "/completions", "/v1/completions", "/chat/completions", "/v1/chat/completions"),
    *("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens", "/v1/chat/completions/control"),
    *("/responses", "/v1/responses", "/responses/input_tokens", "/v1/responses/input_tokens"),
    *("/v1/messages", "/v1/messages/count_tokens"),
    *("/infill", "/embedding", "/embeddings", "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template"),
    *("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"),
    *("/audio/transcriptions", "/v1/audio/transcriptions"),
    *("/props", "/lora-adapters", "/slots/{id_slot}"),
)


def build(
    settings: Settings,
    lifecycle: Lifecycle,
    read_presets: ReadPresets,
    *,
    fake_timing: bool = False,
    vertex: Vertex | None = None,
    responses: ResponseStore | None = None,
    environ: Mapping[str, str] | None = None,
    api_keys: ApiKeys | None = None,
) -> web.Application:
    """Return the application. It also owns the connections to the workers.

    `environ` gives the location of the cache. `api_keys`: those of the settings, if the caller reads them again. Raises
    ConfigError.
    """
    pool = ConnectionPool(timeout=settings.http.timeout or None)
    lifecycle.set_quiet_time_source(pool.quiet_for)
    conversations = Conversations()
    proxy = Proxy(
        lifecycle,
        pool,
        conversations,
        prefix=settings.http.api_prefix or "",
        fake_timing=fake_timing,
        keepalive_policy=KeepalivePolicy(
            settings.router.stream_open_after, settings.http.sse_ping_interval, settings.router.stream_load_progress
        ),
        default_model=settings.router.default_model,
    )
    library = Library(settings, lifecycle, read_presets, environ or {})
    handlers = Handlers(settings, lifecycle, proxy, library)
    pulls = OllamaPull(lifecycle, library)
    app = application(settings, public_paths=vertex.public_paths() if vertex else (), api_keys=api_keys)
    app[ABORT_RESPONSES] = proxy.abort_all
    app[DESCRIBE_STATE] = lambda: f"{lifecycle.describe()}\n{pool!r}"
    app[RESPONSES] = responses or ResponseStore()
    app.cleanup_ctx.append(keep_until_cleanup)
    answered = [
        *_own_routes(handlers),
        *_ollama_routes(Ollama(lifecycle, proxy, environ or {}), pulls),
        *(("GET", path, proxy.by_query) for path in BY_QUERY),
        *(("POST", path, proxy.by_body) for path in BY_BODY),
    ]
    add_routes(app, settings, answered)
    add_routes(app, settings, [*STORED, *UNSUPPORTED])
    add_routes(app, settings, tool_routes(app, settings, environment_without_keys()))
    add_routes(app, settings, _stream_routes(Streams(lifecycle, proxy, conversations)))
    add_pages(app, settings, files(__package__).joinpath("page.html").read_text("utf-8"))
    if vertex is not None:
        at_once = [route for route in answered if route[2] not in (handlers.events, pulls.pull)]
        vertex.serve(app, settings, at_once, handlers.health)

    async def close_lifecycle(_: web.Application) -> None:
        """End waiting requests and event streams, then the workers. No new connections are accepted any more."""
        await lifecycle.close()

    async def close_connections(_: web.Application) -> None:
        await conversations.close()
        pool.close()

    app.on_shutdown.append(close_lifecycle)
    app.on_cleanup.append(close_connections)
    return app


def _own_routes(handlers: Handlers) -> list[Route]:
    return [
        ("GET", "/health", handlers.health),
        ("GET", "/v1/health", handlers.health),
        ("GET", "/props", handlers.props),
        *_model_routes(handlers, ""),
        *_model_routes(handlers, "/v1"),
    ]


def _ollama_routes(ollama: Ollama, pulls: OllamaPull) -> list[Route]:
    return [
        ("GET", "/api/version", ollama.version),
        ("GET", "/api/tags", ollama.tags),
        ("GET", "/api/ps", ollama.running),
        ("POST", "/api/show", ollama.show),
        *(("POST", "/api/" + verb, ollama.generate) for verb in ("chat", "generate", "embed", "embeddings")),
        *(("POST", "/api/" + verb, ollama.refuse) for verb in ("push", "create", "copy")),
        ("POST", "/api/pull", pulls.pull),
        ("DELETE", "/api/delete", pulls.delete),
    ]


def _stream_routes(streams: Streams) -> list[Route]:
    return [
        ("GET", "/v1/stream", streams.resume),
        ("DELETE", "/v1/stream", streams.stop),
        ("POST", "/v1/streams/lookup", streams.look_up),
    ]


def _model_routes(handlers: Handlers, version: str) -> list[Route]:
    """Return the routes that manage models. They exist under `/v1` too, for clients with a base URL of `/v1`."""
    return [
        ("GET", version + "/models", handlers.models),
        ("POST", version + "/models", handlers.download),
        ("DELETE", version + "/models", handlers.remove),
        ("POST", version + "/models/load", handlers.load),
        ("POST", version + "/models/unload", handlers.unload),
        ("GET", version + "/models/sse", handlers.events),
        ("GET", version + "/models/{id:.+}", handlers.model),
    ]
