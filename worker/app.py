"""The worker's HTTP application: all routes and their handlers. `serve` builds it once."""

from __future__ import annotations

from html import escape

from aiohttp import web
from llama_corral.common.tools.routes import tool_routes
from llama_corral.common.web.application import Route, add_routes, application
from llama_corral.common.web.auth import ApiKeys
from llama_corral.common.web.pages import add_pages
from llama_corral.common.web.stored_responses import RESPONSES, keep_until_cleanup
from llama_corral.common.web.stored_responses import ROUTES as STORED
from llama_corral.common.web.unsupported import UNSUPPORTED
from llama_corral.common.web.vertex import Vertex
from llama_corral.presets.options.table import environment_without_keys

from .api import adapters, completions, embeddings, infill, monitoring, rerank, slot_actions, transcriptions, utilities
from .api.answers import resumable
from .api.anthropic import handlers as anthropic
from .api.control import ACTIVE, ActiveCompletions, control
from .api.ollama import handlers as ollama
from .api.ollama import models as ollama_models
from .api.responses import handlers as responses
from .api.serving import WORKER_CONTEXT, WorkerContext

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title></head>
<body><h1>{name}</h1><p>This is a llama-corral worker: an OpenAI-compatible server of one model.
Its endpoints start at <a href="v1/models">v1/models</a>.</p></body></html>
"""

MONITORING: list[Route] = [
    ("GET", "/health", monitoring.health),
    ("GET", "/v1/health", monitoring.health),
    ("GET", "/models", monitoring.models),
    ("GET", "/v1/models", monitoring.models),
    ("GET", "/models/{id:.+}", monitoring.model),
    ("GET", "/v1/models/{id:.+}", monitoring.model),
    ("GET", "/props", monitoring.props),
    ("POST", "/props", monitoring.set_props),
    ("GET", "/slots", monitoring.slots),
    ("GET", "/metrics", monitoring.metrics),
    ("GET", "/api/version", ollama_models.version),
    ("GET", "/api/tags", ollama_models.tags),
    ("GET", "/api/ps", ollama_models.running),
    ("POST", "/api/show", ollama_models.show_model),
    ("POST", "/api/pull", ollama_models.pull),
    ("POST", "/api/push", ollama_models.refuse),
    ("POST", "/api/create", ollama_models.refuse),
    ("POST", "/api/copy", ollama_models.refuse),
    ("DELETE", "/api/delete", ollama_models.refuse),
]

STREAMING: list[Route] = [
    ("POST", "/completion", completions.native),
    ("POST", "/completions", completions.native),
    ("POST", "/v1/completions", completions.openai_completions),
    ("POST", "/chat/completions", completions.openai_chat),
    ("POST", "/v1/chat/completions", completions.openai_chat),
    ("POST", "/v1/messages", anthropic.messages),
    ("POST", "/responses", responses.create),
    ("POST", "/v1/responses", responses.create),
    ("POST", "/infill", infill.infill),
    ("POST", "/audio/transcriptions", transcriptions.transcriptions),
    ("POST", "/v1/audio/transcriptions", transcriptions.transcriptions),
    ("POST", "/api/chat", ollama.chat),
    ("POST", "/api/generate", ollama.generate),
]
"""Routes that generate text, as one JSON body or as a stream. A stream can be resumed."""

RESUMING: list[Route] = [
    ("GET", "/v1/stream", resumable.resume),
    ("DELETE", "/v1/stream", resumable.stop),
    ("POST", "/v1/streams/lookup", resumable.look_up),
]

COMPUTING: list[Route] = [
    ("POST", "/v1/chat/completions/control", control),
    ("POST", "/chat/completions/input_tokens", completions.count_chat_tokens),
    ("POST", "/v1/chat/completions/input_tokens", completions.count_chat_tokens),
    ("POST", "/v1/messages/count_tokens", anthropic.count_tokens),
    ("POST", "/responses/input_tokens", responses.count_tokens),
    ("POST", "/v1/responses/input_tokens", responses.count_tokens),
    ("POST", "/apply-template", completions.apply_template),
    ("POST", "/tokenize", utilities.tokenize),
    ("POST", "/detokenize", utilities.detokenize),
    ("POST", "/embedding", embeddings.native_embeddings),
    ("POST", "/embeddings", embeddings.native_embeddings),
    ("POST", "/v1/embeddings", embeddings.openai_embeddings),
    ("POST", "/api/embed", ollama.embed),
    ("POST", "/api/embeddings", ollama.embeddings),
    ("GET", "/lora-adapters", adapters.list_adapters),
    ("POST", "/lora-adapters", adapters.set_scales),
    ("POST", "/rerank", rerank.rerank),
    ("POST", "/reranking", rerank.rerank),
    ("POST", "/v1/rerank", rerank.rerank),
    ("POST", "/v1/reranking", rerank.rerank),
    ("POST", "/slots/{id_slot}", slot_actions.act),
]


def build(worker: WorkerContext, vertex: Vertex | None = None) -> web.Application:
    """Build the application. Raises ConfigError if an option of the HTTP server is invalid."""
    settings = worker.settings
    slot_actions.check_directory(settings.context.slot_save_path)
    public_paths = vertex.public_paths() if vertex else ()
    api_keys = ApiKeys(settings)
    worker.has_keys = worker.has_keys or bool(api_keys)
    app = application(
        settings,
        is_ready=lambda: worker.is_ready,
        public_paths=public_paths,
        api_keys=api_keys,
        checks_pages=not worker.has_router,
    )
    app[WORKER_CONTEXT] = worker
    app[ACTIVE] = ActiveCompletions()
    app[RESPONSES] = worker.responses
    app.cleanup_ctx.extend((resumable.sessions, keep_until_cleanup))
    add_routes(app, settings, [(method, path, resumable.resumable(handler)) for method, path, handler in STREAMING])
    add_routes(app, settings, [*MONITORING, *RESUMING, *STORED, *COMPUTING, *UNSUPPORTED])
    add_routes(app, settings, tool_routes(app, settings, environment_without_keys()))
    add_pages(app, settings, PAGE.format(name=escape(worker.name)), worker.name)
    if vertex is not None:
        vertex.serve(app, settings, [*MONITORING, *STREAMING, *COMPUTING], monitoring.health)
    return app
