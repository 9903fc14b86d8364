"""Handlers of Ollama's `/api/pull`, which streams a download's progress as JSON lines, and `/api/delete`.

Models are downloaded from a Hugging Face hub, not from Ollama's library: names are `hf.co/user/repo[:quantization]`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import ApiError, InvalidRequest, ModelNotFound, ServerFault
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.hub.gguf_names import canonical_name
from llama_corral.common.web.access_log import note_failure, note_model
from llama_corral.common.web.application import LINES_TYPE, error_event, event_stream, json_response
from llama_corral.common.web.envelopes import OLLAMA
from llama_corral.common.web.ollama_models import HUBS, LATEST, PULLED, possible_names
from llama_corral.common.web.request_body import read_fields
from msgspec import Struct

from .library import Library
from .lifecycle.lifecycle import Lifecycle
from .models.events import ModelEvent


class _Pulled(Struct):
    """The fields of `/api/pull` and `/api/delete`."""

    model: Any = None
    name: Any = None
    stream: Any = None


class OllamaPull:
    def __init__(self, lifecycle: Lifecycle, library: Library) -> None:
        self._lifecycle = lifecycle
        self._library = library

    async def pull(self, request: web.Request) -> web.StreamResponse:
        body = await read_fields(request, _Pulled)
        note_model(request, name := _requested_name(body))
        async with contextlib.aclosing(self._download_until_left(name)) as steps:
            if body.stream is not False:
                return await _streamed(request, steps)
            async for _ in steps:
                pass
            return json_response(PULLED)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        note_model(request, name := _requested_name(await read_fields(request, _Pulled)))
        for possible in possible_names(name):
            if self._lifecycle.view(possible) is not None:
                await self._library.remove(possible)
                return web.Response()
        raise ModelNotFound(name)

    async def _download_until_left(self, name: str) -> AsyncGenerator[dict[str, Any], None]:
        """Download a model and yield progress messages. If the client that started it disconnects, cancel the download.

        Ollama does the same. The part that was downloaded is kept for the next try. A model of any source that is known
        by this name or alias needs no download. Raises ApiError.
        """
        known = next((view for possible in possible_names(name) if (view := self._lifecycle.view(possible))), None)
        if known is not None and known.name not in self._lifecycle.downloads():
            if not known.is_usable:
                raise ServerFault(f"model '{known.name}' {known.failure}")
            yield dict(PULLED)
            return
        wanted = _hub_name(name)
        async with self._lifecycle.subscribe() as listener:
            is_ours = known is None
            if is_ours:
                self._library.download(wanted)
            has_ended = False
            try:
                yield {"status": "pulling manifest"}
                while (event := await listener.get()) is not None:
                    if event.model != wanted:
                        continue
                    has_ended = event.event in ("download_finished", "download_failed")
                    for step in _steps(event):
                        yield step
                    if has_ended:
                        return
                raise ServerFault("the router is shutting down, or the client read the progress too slowly")
            finally:
                if is_ours and not has_ended:
                    await self._lifecycle.cancel_download(wanted)


async def _streamed(request: web.Request, steps: AsyncGenerator[dict[str, Any], None]) -> web.StreamResponse:
    first = await anext(steps)  # an immediate refusal gets its own HTTP status
    response = event_stream(LINES_TYPE)
    await response.prepare(request)
    await response.write(_line(first))
    try:
        async for step in steps:
            await response.write(_line(step))
    except ApiError as error:
        note_failure(request, error.message)
        await response.write(error_event(error, OLLAMA))
    await response.write_eof()
    return response


def _steps(event: ModelEvent) -> list[dict[str, Any]]:
    """Return Ollama's messages for an event of the download. Raises ServerFault if the download failed."""
    data = event.data or {}
    if event.event == "download_failed":
        raise ServerFault(f"pull failed: {data.get('error', 'no reason given')}")
    if event.event == "download_finished":
        done = ("verifying sha256 digest", "writing manifest", "success")
        return [{"status": status} for status in done]
    if event.event != "download_progress":
        return []
    return [_progress(url, amounts) for url, amounts in data["progress"].items()]


def _progress(url: str, amounts: dict[str, int]) -> dict[str, Any]:
    """Return a progress message. Its digest is that of the file's URL: it only has to be unique for each file."""
    digest = "sha256:" + hashlib.sha256(url.encode()).hexdigest()
    file = url.rpartition("/")[2]
    return {"status": f"pulling {file}", "digest": digest, "total": amounts["total"], "completed": amounts["done"]}


def _hub_name(name: str) -> str:
    """Return the name under which the cache will list the model. Raises InvalidRequest."""
    bare = next((name[len(hub) :] for hub in HUBS if name.startswith(hub)), name).removesuffix(LATEST)
    if "/" not in bare:
        raise InvalidRequest(
            f"'{name}' cannot be pulled: this server pulls from Hugging Face, as hf.co/user/repo or "
            "hf.co/user/repo:quantization"
        )
    return canonical_name(bare)


def _requested_name(body: _Pulled) -> str:
    name = body.model or body.name
    if not isinstance(name, str):
        raise InvalidRequest("model is required")
    return name


def _line(step: dict[str, Any]) -> bytes:
    return encode_json(step) + b"\n"
