"""`/lora-adapters`: lists the LoRA adapters and sets their scales for requests that give none."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.application import json_response
from llama_corral.common.web.request_body import read_json

from ..engine.runner import AdapterInfo
from .request.limits import check_limit
from .request.scales import read_scales
from .serving import WORKER_CONTEXT


async def list_adapters(request: web.Request) -> web.StreamResponse:
    async with request.app[WORKER_CONTEXT].engine.use() as loaded:
        return json_response([_adapter_json(info, scale) for info, scale in loaded.adapters()])


async def set_scales(request: web.Request) -> web.StreamResponse:
    body = await read_json(request)
    if not isinstance(body, list):
        raise InvalidRequest("Request body must be an array")
    check_limit("lora", body)
    scales = dict(read_scales(body))
    async with request.app[WORKER_CONTEXT].engine.use() as loaded:
        await loaded.set_adapter_scales(scales)
    return json_response({"success": True})


def _adapter_json(info: AdapterInfo, scale: float) -> dict[str, Any]:
    shown = {
        "id": info.id,
        "path": str(info.path),
        "scale": scale,
        "task_name": info.task_name,
        "prompt_prefix": info.prompt_prefix,
    }
    if info.invocation:
        shown["alora_invocation_string"] = info.invocation_text
        shown["alora_invocation_tokens"] = list(info.invocation)
    return shown
