"""Selects the `WorkerContext` of a request: the worker's own, or that of a preset with other defaults.

Several presets can share one worker. The router sends a preset's defaults in a header (`presets/variants.py`);
`context_of` builds the context for them once and caches it. Without a router the header is ignored.
"""

from __future__ import annotations

import copy

from aiohttp import web
from llama_corral.common.base.errors import ConfigError, ServerFault
from llama_corral.presets.layer_source import check
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.options.table import OPTIONS
from llama_corral.presets.variants import DEFAULTS_HEADER, layer_of, read_header
from msgspec.structs import replace

from .request.defaults import chat_defaults, completion_defaults
from .serving import WORKER_CONTEXT, WorkerContext

MAX_VARIANTS = 256
"""Limit of the cache. A variant needs some KB, and those of edited presets are not removed individually."""


def context_of(request: web.Request) -> WorkerContext:
    worker = request.app[WORKER_CONTEXT]
    text = request.headers.get(DEFAULTS_HEADER)
    if text is None or not worker.has_router or not worker.is_ready:
        return worker
    found = worker.variants.get(text)
    if found is None:
        if len(worker.variants) >= MAX_VARIANTS:
            worker.variants.clear()
        found = worker.variants[text] = _variant(worker, text)
    return found


def _variant(worker: WorkerContext, text: str) -> WorkerContext:
    defaults = read_header(text)
    try:
        given = check(layer_of(defaults))
        settings = _changed(worker.settings, given, defaults.name)
        chat = chat_defaults(settings)
        completion = completion_defaults(settings, worker.info.metadata)
    except ConfigError as error:
        raise ServerFault(f"model '{defaults.name}' cannot be used: {error}") from None
    model = worker.model
    chat = replace(chat, media_marker=model.chat_defaults.media_marker, system_prompt=defaults.system_prompt)
    variant = copy.copy(worker)
    vars(variant).pop("name", None)  # drop the cached property
    variant.settings = settings
    variant.loaded_state = replace(model, chat_defaults=chat, defaults=completion)
    return variant


def _changed(settings: Settings, given: Settings, name: str) -> Settings:
    """Return the settings with the given values, and defaults for the options that these replace."""
    update = {field: given.value(field) for field in given.options_set}
    replaced = {other for field in update for other in OPTIONS[field].replaces} - update.keys()
    return settings.with_options({**update, "alias": (name,)}, unset=replaced)
