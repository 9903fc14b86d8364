"""The endpoints that report the worker's state: `/health`, `/models`, `/props`, `/slots`, `/metrics`.

All except `/slots` answer without the loaded model: they do not wake it and do not reset its idle timer.
"""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import NotFound, NotSupported, Unavailable
from llama_corral.common.hub.model_card import only_embeds
from llama_corral.common.web.anthropic import VERSION_HEADER, with_anthropic_name, with_anthropic_names
from llama_corral.common.web.application import json_response, query_text
from llama_corral.presets.abilities import embeds_texts, ranks

from ..engine.runner import SlotView, Vocab
from .request.generation_settings import brief_settings
from .request.params import CompletionParams
from .serving import WORKER_CONTEXT, WorkerContext
from .variants import context_of


async def health(request: web.Request) -> web.StreamResponse:
    return json_response({"status": "ok"})


# -- models ----------------------------------------------------------------------------------------------------------


async def models(request: web.Request) -> web.StreamResponse:
    """List the model: OpenAI's format in `data`, Ollama's in `models`."""
    worker = request.app[WORKER_CONTEXT]
    data = [model_entry(worker)]
    shown: dict[str, Any] = {"models": [_ollama_entry(worker)], "object": "list", "data": data}
    if VERSION_HEADER in request.headers:
        shown |= with_anthropic_names(data)
    return json_response(shown)


async def model(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    if request.match_info["id"] not in (worker.name, *worker.aliases):
        raise NotFound(f"model '{request.match_info['id']}' not found")
    entry = model_entry(worker)
    return json_response(with_anthropic_name(entry) if VERSION_HEADER in request.headers else entry)


def model_entry(worker: WorkerContext) -> dict[str, Any]:
    """Return the model's entry in OpenAI's format.

    It is also the payload of the `ready` report; the router uses it for its own model list.
    """
    info = worker.info
    return {
        "id": worker.name,
        "aliases": worker.aliases,
        "tags": worker.tags,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "llamacpp",
        "architecture": {"input_modalities": ["text", *input_modalities(worker)], "output_modalities": ["text"]},
        "meta": {
            "vocab_type": info.vocab_type,
            "n_vocab": info.n_vocab,
            "n_ctx": info.n_ctx,
            "n_ctx_train": info.n_ctx_train,
            "n_embd": info.n_embd,
            "n_params": info.n_params,
            "size": info.size,
            "size_gpu": info.size_gpu,
            "ftype": info.ftype,
        },
    }


def input_modalities(worker: WorkerContext) -> list[str]:
    """Return the inputs other than text, by the names of the router's list."""
    media = worker.info.media
    return [kind for kind, has in (("image", media and media.vision), ("audio", media and media.audio)) if has]


def _ollama_entry(worker: WorkerContext) -> dict[str, Any]:
    is_embedder = only_embeds(worker.info.metadata) or ranks(worker.settings)
    return {
        "name": worker.name,
        "model": worker.name,
        "modified_at": "",
        "size": "",
        "digest": "",
        "type": "model",
        "description": "",
        "tags": [""],
        "capabilities": [
            *([] if is_embedder else ["completion"]),
            *(["embedding"] if is_embedder or embeds_texts(worker.settings) else []),
            *(["multimodal"] if worker.info.media else []),
        ],
        "parameters": "",
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "",
            "families": [""],
            "parameter_size": "",
            "quantization_level": "",
        },
    }


# -- props -----------------------------------------------------------------------------------------------------------


async def props(request: web.Request) -> web.StreamResponse:
    worker = context_of(request)
    settings, info, chat = worker.settings, worker.info, worker.model.chat
    media = info.media
    shown = {
        "default_generation_settings": {"params": _default_settings(worker), "n_ctx": info.n_ctx},
        "total_slots": info.n_slots,
        "model_alias": worker.name,
        "model_ftype": info.ftype,
        "model_path": str(info.path),
        "modalities": {
            "vision": media is not None and media.vision,
            "video": media is not None and media.video,
            "audio": media is not None and media.audio,
        },
        "media_marker": worker.media_marker,
        "endpoint_slots": settings.endpoints.slots,
        "endpoint_props": settings.endpoints.props,
        "endpoint_metrics": settings.endpoints.metrics,
        "ui": settings.http.ui,
        "webui": settings.http.ui,
        "ui_settings": worker.ui_settings,
        "webui_settings": worker.ui_settings,
        "chat_template": chat.source,
        "chat_template_caps": chat.capabilities_json(),
        "bos_token": info.bos_text,
        "eos_token": info.eos_text,
        "build_info": worker.build,
        "is_sleeping": worker.engine.is_sleeping,
        "cors_proxy_enabled": worker.settings.http.ui_mcp_proxy,
    }
    if chat.tool_source:
        shown["chat_template_tool_use"] = chat.tool_source
    return json_response(shown)


def _default_settings(worker: WorkerContext) -> dict[str, Any]:
    """Return the default settings, but n_predict and n_keep with their built-in values, as llama-server shows them."""
    return brief_settings(CompletionParams(sampling=worker.model.defaults.sampling))


async def set_props(request: web.Request) -> web.StreamResponse:
    """Accept any request and change nothing, as llama-server does: no property can be changed so far."""
    worker = request.app[WORKER_CONTEXT]
    if not worker.settings.endpoints.props:
        raise NotSupported("This server does not support changing global properties. Start it with `--props`")
    return json_response({"success": True})


# -- slots -----------------------------------------------------------------------------------------------------------


async def slots(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    if not worker.settings.endpoints.slots:
        raise NotSupported("This server does not support slots endpoint. Start it with `--slots`")
    async with worker.engine.use() as loaded:
        views = await loaded.slots()
        if query_text(request, "fail_on_no_slot") and all(view.is_processing for view in views):
            raise Unavailable("no slot available")
        return json_response([_slot_json(view, loaded.vocab, worker.slots_debug) for view in views])


def _slot_json(view: SlotView, vocab: Vocab, debug: bool) -> dict[str, Any]:
    """Return the slot's current or last task as JSON. With `debug`, include its prompt and generated text."""
    shown: dict[str, Any] = {
        "id": view.id,
        "n_ctx": view.n_ctx,
        "speculative": view.speculative,
        "is_processing": view.is_processing,
    }
    if view.id_task is None:
        return shown
    shown |= {
        "id_task": view.id_task,
        "n_prompt_tokens": view.n_prompt_tokens,
        "n_prompt_tokens_processed": view.n_prompt_processed,
        "n_prompt_tokens_cache": view.n_prompt_cached,
        "params": view.settings or {},
        "next_token": [
            {
                "has_next_token": view.has_next_token,
                "has_new_line": view.has_new_line,
                "n_remain": view.n_remain,
                "n_decoded": view.n_decoded,
            }
        ],
    }
    if debug:
        shown |= {"prompt": vocab.detokenize(view.prompt), "generated": vocab.detokenize(view.generated)}
    return shown


# -- metrics ---------------------------------------------------------------------------------------------------------


async def metrics(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    if not worker.settings.endpoints.metrics:
        raise NotSupported("This server does not support metrics endpoint. Start it with `--metrics`")
    from .metrics import CONTENT_TYPE, exposition  # imported late, because most workers have no metrics

    return web.Response(
        body=exposition(worker.engine.metrics()),
        headers={"Content-Type": CONTENT_TYPE, "Process-Start-Time-Unix": str(worker.started)},
    )
