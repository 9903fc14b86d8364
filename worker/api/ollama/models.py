"""Ollama's endpoints about models, for a worker's single model. The router has its own endpoints for all models.

Nothing here wakes the model. Requests to create, download or remove other models are refused.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiohttp import web
from llama_corral.common.base.errors import ModelNotFound, NotSupported
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.hub.model_card import ModelCard, read_brief_card, read_card
from llama_corral.common.web.application import LINES_TYPE, json_response
from llama_corral.common.web.json_fields import Fields
from llama_corral.common.web.ollama import expiry_text, version_json
from llama_corral.common.web.ollama_models import PULLED, possible_names, running_entry, show, tag_entry
from llama_corral.common.web.request_body import OWN_BODY
from llama_corral.presets.abilities import abilities
from llama_corral.presets.options.table import OPTIONS

from ..monitoring import input_modalities
from ..serving import WORKER_CONTEXT, WorkerContext, read_request

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings


async def version(request: web.Request) -> web.StreamResponse:
    return json_response(version_json())


async def tags(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    card = await _card(worker)
    return json_response({"models": [tag_entry(name, card) for name in _names(worker)]})


async def running(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    if worker.engine.is_sleeping:
        return json_response({"models": []})
    info, expires_at = worker.info, expiry_text(time.time(), worker.engine.sleeps_in)
    entry = running_entry(
        worker.name,
        await _card(worker),
        expires_at=expires_at,
        n_ctx=info.n_ctx,
        size=info.size,
        size_gpu=info.size_gpu,
    )
    return json_response({"models": [entry]})


async def show_model(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    fields = Fields(await read_request(request, most=OWN_BODY))
    name = fields.string("model", "name", default="")
    if not _is_own(worker, name):
        raise ModelNotFound(name)
    verbose = fields.boolean("verbose", default=False)
    return await asyncio.to_thread(_show, worker, name, verbose=verbose)


def _show(worker: WorkerContext, name: str, *, verbose: bool) -> web.Response:
    """Return the answer of `show`; reads the file, whose metadata may take megabytes."""
    card = read_card(worker.info.path)
    shown = show(
        name,
        card,
        capabilities=abilities(card, worker.settings, input_modalities(worker)),
        parameters=_shown(worker.settings),
        template=worker.model.chat.source,
        verbose=verbose,
    )
    return json_response(shown)


def _shown(settings: Settings) -> dict[str, str]:
    """Return the options that were set, without keys and tokens."""
    return {field: str(settings.value(field)) for field in sorted(settings.options_set) if not OPTIONS[field].secret}


def _names(worker: WorkerContext) -> list[str]:
    return list(dict.fromkeys((worker.name, *worker.aliases)))


def _is_own(worker: WorkerContext, name: str) -> bool:
    return not set(_names(worker)).isdisjoint(possible_names(name))


async def pull(request: web.Request) -> web.StreamResponse:
    """Answer that the worker's model is here; refuse others."""
    fields = Fields(await read_request(request, most=OWN_BODY))
    if not _is_own(request.app[WORKER_CONTEXT], fields.string("model", "name", default="")):
        return await refuse(request)
    if not fields.boolean("stream", default=True):
        return json_response(PULLED)
    return web.Response(body=encode_json(PULLED) + b"\n", content_type=LINES_TYPE)


async def refuse(request: web.Request) -> web.StreamResponse:
    raise NotSupported(f"{request.path}: this server has one model and cannot create, download or remove models")


async def _card(worker: WorkerContext) -> ModelCard:
    return await asyncio.to_thread(read_brief_card, worker.info.path)
