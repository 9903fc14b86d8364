"""The MCP servers of a router or worker: lists their tools and calls them.

At startup each MCP server is started to list its tools and ended again; the first call starts it again, and then it
keeps running. If it dies or hangs, the next call restarts it; if it cannot be started, there is a pause before the next
try. A bad MCP server does not delay the others, the startup or the shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from .catalog import function
from .errors import ToolFailed
from .mcp_config import McpServer
from .mcp_connection import McpConnection, McpError
from .process import Processes
from .tool import Answer, ServerTool, ToolListing, ToolRequest

log = logging.getLogger("corral.tools")

FIRST_LISTING_S = 10.0
"""Seconds after startup that a list of tools waits for slow servers; slower ones appear in a later list."""
COOLDOWN_S = 5.0
"""Seconds before a server that could not be started is tried again."""


class _ServerProcess:
    """One MCP server, which may be running or not."""

    def __init__(self, config: McpServer, processes: Processes) -> None:
        self.config = config
        self.tools: list[ServerTool] = []
        self._processes = processes
        self._connection: McpConnection | None = None
        self._lock = asyncio.Lock()
        self._is_known = False
        self._retry_at = 0.0
        self._last_error = ""

    async def discover(self) -> None:
        """Start the server to list its tools, unless they are known or an attempt failed within COOLDOWN_S."""
        async with self._lock:
            if self._is_known or time.monotonic() < self._retry_at:
                return
            connection = McpConnection(self.config, self._processes)
            try:
                await connection.open()
                found = await connection.tools()
            except McpError as error:
                self._back_off(error)
                return
            finally:
                await connection.close()
            self._set_tools(found)

    @property
    def needs_refresh(self) -> bool:
        return self._connection is not None and self._connection.is_alive and self._connection.has_other_tools

    async def refresh(self) -> None:
        """Read the tools of a running server again if it reported a change."""
        async with self._lock:
            if self._connection is not None and self.needs_refresh:
                try:
                    self._set_tools(await self._connection.tools())
                except McpError as error:
                    log.warning("cannot list the changed tools of MCP server '%s': %s", self.config.name, error)

    def _set_tools(self, found: list[dict[str, Any]]) -> None:
        self.tools = [McpTool(self, entry) for entry in found if isinstance(entry.get("name"), str)]
        self._is_known = True
        log.info("MCP server '%s' has %d tools", self.config.name, len(self.tools))

    def _back_off(self, error: McpError) -> None:
        log.warning("MCP server '%s': %s", self.config.name, error)
        self._last_error = str(error)
        self._retry_at = time.monotonic() + COOLDOWN_S

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool and return its result; start the server if needed. Raise McpError."""
        connection = await self._connected()
        return await connection.request("tools/call", {"name": tool, "arguments": arguments})

    async def _connected(self) -> McpConnection:
        async with self._lock:
            if self._connection is not None:
                if self._connection.is_alive and (
                    not self._connection.is_suspect or await self._connection.is_responding()
                ):
                    return self._connection
                log.warning("MCP server '%s' died or hangs, restarting it", self.config.name)
                await self._connection.close()
                self._connection = None
            if time.monotonic() < self._retry_at:
                raise McpError(f"MCP server '{self.config.name}' is unavailable: {self._last_error}")
            connection = McpConnection(self.config, self._processes)
            try:
                await connection.open()
            except BaseException as error:
                if isinstance(error, McpError):
                    self._back_off(error)
                await connection.close()
                raise
            self._connection = connection
            return connection

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


class McpTool:
    """Implements `tool.ServerTool`."""

    def __init__(self, server: _ServerProcess, entry: dict[str, Any]) -> None:
        self._server = server
        self._name: str = entry["name"]
        schema = entry.get("inputSchema")
        description = entry.get("description")
        name = f"{server.config.name}_{self._name}"
        definition = function(
            name, description if isinstance(description, str) else "", schema if isinstance(schema, dict) else {}
        )
        self.shown = ToolListing(name, name, definition, type="mcp", uses_cwd=False)

    async def run(self, call: ToolRequest) -> Answer:
        try:
            return read_result(await self._server.call(self._name, dict(call.arguments)))
        except McpError as error:
            return {"error": str(error)}

    def stream(self, call: ToolRequest) -> AsyncGenerator[str, None]:
        raise ToolFailed(f"{self.shown.name} does not support streaming")


class McpServers:
    def __init__(self, configs: Sequence[McpServer], processes: Processes) -> None:
        self._servers = [_ServerProcess(config, processes) for config in configs]
        self._discovering: set[asyncio.Task[None]] = set()
        self._first: set[asyncio.Task[None]] = set()
        self._first_listing_until = 0.0

    def start(self) -> None:
        self._first_listing_until = time.monotonic() + FIRST_LISTING_S
        self._first = {self._discover(server) for server in self._servers}

    def _discover(self, server: _ServerProcess) -> asyncio.Task[None]:
        task = asyncio.create_task(server.discover())
        self._discovering.add(task)
        task.add_done_callback(self._discovering.discard)
        return task

    def known(self) -> list[ServerTool]:
        return [tool for server in self._servers for tool in server.tools]

    async def tools(self, wanted: str = "") -> list[ServerTool]:
        """Return the known tools. During startup, wait for the servers' lists, or until the tool `wanted` is known."""
        while not any(tool.shown.name == wanted for tool in self.known()):
            waiting = {task for task in self._first if not task.done()}
            seconds = self._first_listing_until - time.monotonic()
            if not waiting or seconds <= 0:
                break
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*(server.refresh() for server in self._servers if server.needs_refresh))
        if not self._discovering:
            for server in self._servers:
                self._discover(server)
        return self.known()

    async def close(self) -> None:
        waiting = tuple(self._discovering)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, *(server.close() for server in self._servers), return_exceptions=True)


def read_result(result: dict[str, Any]) -> Answer:
    """Return the texts of a result; parts without text are replaced by a note with their type."""
    content = result.get("content")
    parts = [_text(part) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    text = "\n".join(parts)
    if result.get("isError") is True:
        return {"error": text or "MCP tool returned an error"}
    return {"plain_text_response": text}


def _text(part: dict[str, Any]) -> str:
    resource = part.get("resource")
    for text in (part.get("text"), resource.get("text") if isinstance(resource, dict) else None):
        if isinstance(text, str):
            return text
    where = part.get("uri") or (resource.get("uri") if isinstance(resource, dict) else None) or part.get("mimeType")
    return f"[{part.get('type', 'something')}{f': {where}' if where else ''}]"
