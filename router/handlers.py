"""Handlers of the endpoints that the router answers itself: health, properties, and listing and managing models.

They read the views of `lifecycle` and request loads and unloads from it. They never access a worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web
from llama_corral.common.base.errors import NotFound
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.base.version import BUILD_INFO
from llama_corral.common.web.access_log import note_model
from llama_corral.common.web.anthropic import VERSION_HEADER, with_anthropic_name, with_anthropic_names
from llama_corral.common.web.application import event_stream, json_response, query_text
from llama_corral.common.web.foreign_pages import refuse_foreign_page
from llama_corral.common.web.request_body import read_fields
from llama_corral.common.web.ui_settings import read_ui_settings
from msgspec import Struct

from .library import Library
from .lifecycle.lifecycle import Lifecycle
from .models.events import ModelEvent
from .models.model import ModelView
from .proxy.proxy import Proxy

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings


KEEPALIVE_COMMENT = b":\n\n"
SNAPSHOT = "snapshot"
"""Name of the events with which `/models/sse` begins, one for each model."""


class Handlers:
    def __init__(self, settings: Settings, lifecycle: Lifecycle, proxy: Proxy, library: Library) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._proxy = proxy
        self._library = library
        self._ui_settings = read_ui_settings(settings)
        self._ping_interval = settings.http.sse_ping_interval if settings.http.sse_ping_interval > 0 else None

    async def health(self, request: web.Request) -> web.StreamResponse:
        return json_response({"status": "ok"})

    async def props(self, request: web.Request) -> web.StreamResponse:
        """Answer with the router's properties, or with `?model=` those of a worker."""
        if query_text(request, "model"):
            return await self._proxy.by_query(request)
        return json_response(
            {
                "role": "router",
                "max_instances": self._settings.router.models_max,
                "models_autoload": self._settings.router.models_autoload,
                "model_alias": "llama-server",
                "model_path": "none",
                "default_generation_settings": {"params": None, "n_ctx": 0},
                "ui_settings": self._ui_settings,
                "webui_settings": self._ui_settings,  # the name in an earlier llama-server
                "build_info": BUILD_INFO,
                "cors_proxy_enabled": self._settings.http.ui_mcp_proxy,
            }
        )

    async def models(self, request: web.Request) -> web.StreamResponse:
        if query_text(request, "reload"):
            refuse_foreign_page(request)
            await self._library.reload()
        shown = await self._lifecycle.each_view(model_entry)
        if VERSION_HEADER in request.headers:
            return json_response({**with_anthropic_names(shown), "object": "list"})
        return json_response({"data": shown, "object": "list"})

    async def model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        view = self._lifecycle.view(name)
        if view is None:
            raise NotFound(f"model '{name}' not found")
        shown = model_entry(view)
        return json_response(with_anthropic_name(shown) if VERSION_HEADER in request.headers else shown)

    async def load(self, request: web.Request) -> web.StreamResponse:
        await self._lifecycle.load(await _named_model(request))
        return json_response({"success": True})

    async def unload(self, request: web.Request) -> web.StreamResponse:
        await self._lifecycle.unload(await _named_model(request))
        return json_response({"success": True})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send the states of all models, then every change as an event, and a comment after a time without events."""
        async with self._lifecycle.subscribe() as listener:
            known = await self._lifecycle.each_view(lambda view: _sse_line(state_event(view)))
            response = event_stream()
            await response.prepare(request)
            await response.write(b"".join(known) or KEEPALIVE_COMMENT)
            while True:
                try:
                    async with asyncio.timeout(self._ping_interval):
                        event = await listener.get()
                except TimeoutError:
                    await response.write(KEEPALIVE_COMMENT)
                    continue
                if event is None:
                    return response
                await response.write(_sse_line(event))

    async def download(self, request: web.Request) -> web.StreamResponse:
        self._library.download(await _named_model(request))
        return json_response({"success": True})

    async def remove(self, request: web.Request) -> web.StreamResponse:
        note_model(request, name := query_text(request, "model"))
        await self._library.remove(name)
        return json_response({"success": True})


class _Named(Struct):
    model: Any = None


async def _named_model(request: web.Request) -> str:
    given = (await read_fields(request, _Named)).model
    name = given if isinstance(given, str) else ""
    note_model(request, name)
    return name


def _sse_line(event: ModelEvent) -> bytes:
    return b"data: " + encode_json(event.body()) + b"\n\n"


def state_event(view: ModelView) -> ModelEvent:
    """Return the current state of a model as an event with a name that llama-server does not use.

    Its clients expect only changes: one that loads a model takes a `status_change` with `unloaded` for a failure.
    """
    data: dict[str, Any] = {"status": view.status}
    if view.progress:
        data["progress"] = view.progress
    if view.info:
        data["info"] = view.info
    if view.is_failed:
        data["exit_code"] = view.exit_code
    return ModelEvent(view.name, SNAPSHOT, data)


def model_entry(view: ModelView) -> dict[str, Any]:
    """Return a model's entry in `/models`. While the model runs, its worker's own entry is included."""
    preset = view.preset
    own: dict[str, Any] = {
        "id": view.name,
        "aliases": sorted(preset.aliases),
        "tags": sorted(preset.tags),
        "object": "model",
        "owned_by": "llamacpp",
        "created": int(time.time()),
        "status": _status_json(view),
        "architecture": {
            "input_modalities": list(view.input_modalities),
            "output_modalities": list(preset.output_modalities),
        },
        "source": preset.source,
        "can_remove": preset.source == "cache",
        "in_cache": preset.source == "cache",  # the name in an earlier llama-server
        "path": given.text if (given := preset.layer.get("model")) else "",
    }
    if preset.base:
        own["base"] = preset.base
    memory: dict[str, Any] = {}
    if view.expected is not None:
        memory["expected"] = _memory_json(view.expected.host, view.expected.devices)
    if view.measured is not None:
        used = {part.name: part.size for part in view.measured.devices or () if part.size}
        memory["measured"] = _memory_json(view.measured.host, used)
    if memory:
        own["memory"] = memory
    return {**view.info, **own}


def _memory_json(host: int, devices: Mapping[str, int]) -> dict[str, Any]:
    return {"host": host, "device": sum(devices.values()), "devices": dict(devices)}


def _status_json(view: ModelView) -> dict[str, Any]:
    status: dict[str, Any] = {
        "value": view.status,
        "args": list(view.command_line),
        "preset": view.preset.ini_text,
    }
    if view.is_running:
        left = None if view.expires_in is None else round(view.expires_in, 1)
        status |= {"pinned": view.is_pinned, "kept": view.is_kept, "expires_in": left}
    if view.errors:
        status["errors"] = view.errors
    if view.progress:
        status["progress"] = view.progress
    if view.is_failed:
        status |= {"failed": True, "exit_code": view.exit_code, "error": view.failure, "log": list(view.last_lines)}
        status |= {"failures": view.failures, "retry_in": round(view.pause, 1)}
    elif view.failure:
        status["error"] = view.failure
    return status
