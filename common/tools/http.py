"""The handlers of `/tools`: the list, and calls with or without streaming. Also reads the headers of a call."""

from __future__ import annotations

import contextlib
import logging

from aiohttp import hdrs, web

from ..base.errors import ApiError, InvalidRequest, ServerFault
from ..base.json_encoding import encode_json
from ..base.logs import one_line
from ..web.application import JSON_TYPE, add_retry_hint, event_stream, json_response
from ..web.request_body import read_object
from .errors import RuntimeRefused, ToolFailed
from .server import ToolServer
from .tool import ServerTool, ToolRequest

log = logging.getLogger("corral.tools")


TOOL_BODY = 8 << 20
"""Maximum bytes of a call. Its arguments may contain a whole file that a tool writes."""


class UnknownTool(InvalidRequest):
    status = 404


class ToolHandlers:
    def __init__(self, server: ToolServer) -> None:
        self._server = server

    async def show(self, request: web.Request) -> web.StreamResponse:
        return json_response([tool.shown.body() for tool in await self._server.tools()])

    async def call(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._call(request)
        except ApiError as error:
            # llama-server sends no `error` envelope here; this body works for clients that expect either form
            response = json_response({**error.body(), "error": error.body()}, error.status)
            add_retry_hint(response, error)
            return response

    async def _call(self, request: web.Request) -> web.StreamResponse:
        body = await read_object(request, most=TOOL_BODY)
        name, arguments = body.get("tool"), body.get("params") or {}
        if not isinstance(name, str):
            raise InvalidRequest("tool is missing: it must be a name from the list of GET /tools")
        if not isinstance(arguments, dict):
            raise InvalidRequest("params must be an object")
        if not isinstance(body.get("stream"), bool | None):
            raise InvalidRequest("stream must be true or false")
        tool = await self._server.tool(name)
        if tool is None:
            raise UnknownTool(f'unknown tool "{name}"')
        call = ToolRequest(
            arguments=arguments,
            cwd=request.headers.get("x-tool-cwd", ""),
            runtime=await self._runtime(request, tool),
            as_base64=request.headers.get("x-resp-type", "") == "base64",
        )
        log.debug("calling tool %s", one_line(name))
        if body.get("stream"):
            return await _stream(request, tool, call)
        answer = await tool.run(call)
        if isinstance(answer, bytes):
            return web.Response(body=answer, headers={hdrs.CONTENT_TYPE: JSON_TYPE})
        return json_response(answer)

    async def _runtime(self, request: web.Request, tool: ServerTool) -> str:
        if tool.shown.type == "mcp":
            return ""
        try:
            return await self._server.runtime(request.headers.get("x-tool-runtime", ""))
        except RuntimeRefused as error:
            raise ServerFault(str(error)) from None


async def _stream(request: web.Request, tool: ServerTool, call: ToolRequest) -> web.StreamResponse:
    if not tool.shown.streams:
        raise UnknownTool(f'tool "{tool.shown.name}" does not support stream = true')
    pieces = tool.stream(call)
    response = event_stream()
    await response.prepare(request)
    last: dict[str, object] = {"done": True}
    async with contextlib.aclosing(pieces):
        try:
            async for text in pieces:
                await response.write(b"data: " + encode_json({"chunk": text}) + b"\n\n")
        except (ToolFailed, ApiError) as error:
            last["error"] = str(error)
    await response.write(b"data: " + encode_json(last) + b"\n\n")
    return response
