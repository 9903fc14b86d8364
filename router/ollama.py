"""Handlers of Ollama's endpoints at the router: information about models, and `keep_alive`.

Chats and embeddings are forwarded by `proxy`. Only the model and how long it is kept are read from their bodies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import ConfigError, InvalidRequest, ModelNotFound, NotSupported
from llama_corral.common.hub.model_card import ModelCard, read_card
from llama_corral.common.web.access_log import note_model
from llama_corral.common.web.application import json_response
from llama_corral.common.web.foreign_pages import refuse_foreign_page
from llama_corral.common.web.ollama import NOTHING, expiry_text, version_json, without_generation
from llama_corral.common.web.ollama_models import possible_names, running_entry, show, tag_entry
from llama_corral.common.web.request_body import read_fields, read_skipped_json
from llama_corral.presets.abilities import abilities, template_source
from llama_corral.presets.merge import resolve
from msgspec import Struct

from .lifecycle.lifecycle import Lifecycle
from .model_cards import ModelCards
from .models.model import ModelView
from .placement.snapshot import Retention
from .placement.states import ModelState
from .proxy.model_field import ollama_in_json
from .proxy.proxy import Proxy
from .slices import map_in_slices


class _Shown(Struct):
    """The fields of `/api/show`."""

    model: Any = None
    name: Any = None
    verbose: Any = None


class Ollama:
    def __init__(self, lifecycle: Lifecycle, proxy: Proxy, environ: Mapping[str, str]) -> None:
        self._lifecycle = lifecycle
        self._proxy = proxy
        self._cards = ModelCards(environ)

    # -- using models ------------------------------------------------------------------------------------------------

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Forward a chat, completion or embeddings. Without a prompt it only loads the model, or unloads it."""
        body = await read_skipped_json(request)
        asked = ollama_in_json(body)
        note_model(request, asked.model)
        model = self._find(asked.model)
        if asked.only_unloads:
            refuse_foreign_page(request)
            if not asked.model:
                raise InvalidRequest("model name is missing from the request")
            self._lifecycle.unload_when_idle(model)
            said = NOTHING[_operation(request)]
            return json_response(without_generation(asked.model, said, "unload"))
        names_model, retention = bool(asked.model), Retention.of_keep_alive(asked.keep_alive)
        return await self._proxy.forward(
            request, model, body, names_model=names_model, streams=asked.streams, retention=retention
        )

    def _find(self, name: str) -> str:
        for possible in possible_names(name):
            if model := self._lifecycle.find(possible):
                return model
        return self._proxy.find(name)

    # -- about models ------------------------------------------------------------------------------------------------

    async def version(self, request: web.Request) -> web.StreamResponse:
        return json_response(version_json())

    async def tags(self, request: web.Request) -> web.StreamResponse:
        listed = await self._lifecycle.each_view(lambda view: view)
        views = [view for view in listed if view.status not in _COMING and view.is_usable]
        cards = await self._cards.brief([view.preset for view in views])
        names = [(name, cards[view.name]) for view in views for name in (view.name, *sorted(view.preset.aliases))]
        return json_response({"models": await map_in_slices(lambda named: tag_entry(*named), names)})

    async def running(self, request: web.Request) -> web.StreamResponse:
        views = [view for view in self._lifecycle.views() if view.status == ModelState.LOADED.value]
        cards = await self._cards.brief([view.preset for view in views])
        return json_response({"models": [_running(view, cards[view.name]) for view in views]})

    async def show(self, request: web.Request) -> web.StreamResponse:
        body = await read_fields(request, _Shown)
        name = body.model or body.name
        note_model(request, name := name if isinstance(name, str) else "")
        view = self._lifecycle.view(self._find(name))
        if view is None:
            raise ModelNotFound(name)
        verbose = body.verbose is True
        return await asyncio.to_thread(self._show, name or view.name, view, verbose=verbose)

    def _show(self, name: str, view: ModelView, *, verbose: bool) -> web.Response:
        """Return the answer of `show`; reads files, whose metadata may take megabytes."""
        card = read_card(self._cards.file(view.preset))
        template, capabilities = _template_and_abilities(view, card)
        shown = show(
            name,
            card,
            capabilities=capabilities,
            parameters={field: given.text for field, given in view.preset.layer.items()},
            template=template,
            verbose=verbose,
        )
        return json_response(shown)

    # -- changing models ---------------------------------------------------------------------------------------------

    async def refuse(self, request: web.Request) -> web.StreamResponse:
        raise NotSupported(f"{request.path}: {_REFUSED[_operation(request)]}")


_COMING = (ModelState.DOWNLOADING.value, ModelState.DOWNLOADED.value)
_REFUSED = {
    "copy": "models are described by presets; an alias of a preset is another name for it",
    "create": "models are described by presets; Modelfiles are not read",
    "push": "this server publishes no models",
}


def _operation(request: web.Request) -> str:
    return request.path.rpartition("/")[2]


def _running(view: ModelView, card: ModelCard) -> dict[str, object]:
    meta = view.info.get("meta") or {}
    return running_entry(
        view.name,
        card,
        expires_at=expiry_text(time.time(), view.expires_in),
        n_ctx=meta.get("n_ctx", 0),
        size=meta.get("size", 0),
        size_gpu=meta.get("size_gpu", 0),
    )


def _template_and_abilities(view: ModelView, card: ModelCard) -> tuple[str, list[str]]:
    """Return the chat template and the abilities of a model with the options of its preset; reads a file."""
    try:
        settings = resolve(view.preset.layer)
        return template_source(settings, card.template) or "", abilities(card, settings, view.input_modalities)
    except ConfigError:  # the model cannot be loaded with them
        return card.template, card.capabilities(modalities=view.input_modalities)
