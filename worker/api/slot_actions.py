"""`POST /slots/{id_slot}?action=`: saves a slot to a file, restores it from one, or erases it.

Files are in `--slot-save-path` only: names that lead out of it are refused. An action waits until the slot is idle.
"""

from __future__ import annotations

import re
from pathlib import Path

from aiohttp import web
from llama_corral.common.base.errors import ConfigError, InvalidRequest, NotSupported
from llama_corral.common.web.application import json_response, query_text
from llama_corral.common.web.json_fields import Fields
from llama_corral.common.web.safe_names import is_safe_name

from .serving import WORKER_CONTEXT, read_request


def check_directory(directory: str) -> None:
    if directory and not Path(directory).is_dir():
        raise ConfigError(f"--slot-save-path: not a directory: {directory}")


async def act(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    directory = worker.settings.context.slot_save_path
    if not directory:
        raise NotSupported("This server does not support slots action. Start it with `--slot-save-path`")
    id_slot, action = _slot_id(request.match_info["id_slot"]), query_text(request, "action")
    if action == "erase":
        async with worker.engine.use() as loaded:
            return json_response({"id_slot": id_slot, "n_erased": await loaded.erase_slot(id_slot)})
    if action not in ("save", "restore"):
        raise InvalidRequest("Invalid action")
    name = await _file_name(request)
    path = Path(directory, name)
    async with worker.engine.use() as loaded:
        if action == "save":
            done = await loaded.save_slot(id_slot, path)
            counts = {"n_saved": done.n_tokens, "n_written": done.n_bytes, "timings": {"save_ms": done.milliseconds}}
        else:
            done = await loaded.restore_slot(id_slot, path)
            counts = {"n_restored": done.n_tokens, "n_read": done.n_bytes, "timings": {"restore_ms": done.milliseconds}}
    return json_response({"id_slot": id_slot, "filename": name, **counts})


def _slot_id(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise InvalidRequest("Invalid slot ID")
    return int(text)


async def _file_name(request: web.Request) -> str:
    fields = Fields(await read_request(request))
    if fields.body.get("filename") is None:
        raise InvalidRequest('"filename" is required')
    name = fields.string("filename", default="")
    if not is_safe_name(name):
        raise InvalidRequest("Invalid filename")
    return name
