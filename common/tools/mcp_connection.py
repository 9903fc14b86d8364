"""A connection to one running MCP server: JSON-RPC 2.0, one message per line, on its standard input and output.

Opened, checked and closed by `mcp_servers`. Requests run in parallel, each with a time limit; messages that belong to
no request are ignored. The official client is not used: it costs 55 MB and 0.4 s, and gives no control over how
a server's process starts and ends, which is most of this module's work.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
from itertools import count
from typing import Any

from .mcp_config import McpServer
from .process import STDERR, Processes, ProcessGroup

log = logging.getLogger("corral.tools")

PROTOCOL = "2024-11-05"
"""The oldest revision, which every server supports; tools need nothing newer."""
CLIENT = {"name": "llama-corral", "version": "1"}
MAX_MESSAGE = 8 << 20
"""Maximum bytes of a line, so that a line without end cannot fill our memory."""
STDERR_TAIL = 4096
PING_S = 2.0
CLOSE_S, TERMINATE_S = 0.3, 0.5
"""Seconds from closing its stdin to SIGTERM, and from SIGTERM to SIGKILL."""
MAX_PAGES = 100


class McpError(Exception):
    """The server ended, timed out or sent an invalid answer; the message is one line for the model."""


class McpRefused(McpError):
    """The server answered with an error."""


class McpConnection:
    def __init__(self, server: McpServer, processes: Processes) -> None:
        self._server = server
        self._processes = processes
        self._group: ProcessGroup | None = None
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._lines = _LineSplitter()
        self._stderr = bytearray()
        self._watching: asyncio.Task[None] | None = None
        self.is_suspect = False
        """True after a request timed out: the tool may be slow, or the server hangs. `is_responding` finds out."""

        self.has_other_tools = False
        """True if the server reported that its list of tools changed."""

    @property
    def is_alive(self) -> bool:
        return self._group is not None and not self._group.exited.is_set()

    async def open(self) -> None:
        """Start and initialize the server. Raise McpError. `close` must be called in any case."""
        environ = {**self._processes.environ, **self._server.env}
        command = shutil.which(self._server.command, path=environ.get("PATH"))
        if command is None:
            raise McpError(f"program '{self._server.command}' not found")
        try:
            self._group = await self._processes.start(
                [command, *self._server.args], self._feed, cwd=self._server.cwd or None, environ=environ
            )
        except (OSError, ValueError) as error:
            raise McpError(f"cannot start '{self._server.command}': {error}") from None
        self._watching = asyncio.create_task(self._watch(self._group))
        parameters = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": CLIENT}
        await self.request("initialize", parameters)
        self._send({"method": "notifications/initialized"})

    async def tools(self) -> list[dict[str, Any]]:
        """Return the server's list of tools. Raise McpError."""
        self.has_other_tools = False
        found: list[dict[str, Any]] = []
        parameters: dict[str, Any] = {}
        for _ in range(MAX_PAGES):
            page = await self.request("tools/list", parameters)
            listed = page.get("tools")
            found += [tool for tool in listed if isinstance(tool, dict)] if isinstance(listed, list) else []
            if not isinstance(cursor := page.get("nextCursor"), str) or not cursor:
                break
            parameters = {"cursor": cursor}
        return found

    async def is_responding(self) -> bool:
        """Ping a server after a timeout; return True if it answers within PING_S seconds."""
        try:
            await self.request("ping", {}, PING_S)
        except McpRefused:
            pass
        except McpError:
            return False
        self.is_suspect = False
        return True

    async def request(self, method: str, parameters: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send a request and return its result. `seconds`: time limit instead of the server's. Raise McpError."""
        if not self.is_alive:
            raise McpError(self._exit_message())
        number = next(self._ids)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        is_answered = False
        try:
            self._send({"id": number, "method": method, "params": parameters})
            async with asyncio.timeout(seconds or self._server.timeout):
                message = await reply
            is_answered = True
        except TimeoutError:
            self.is_suspect = True
            raise McpError(f"request timed out after {seconds or self._server.timeout:g} s") from None
        finally:
            del self._waiting[number]
            if not is_answered and method == "tools/call":
                self._send({"method": "notifications/cancelled", "params": {"requestId": number}})
        return _result(message)

    def _send(self, message: dict[str, Any]) -> None:
        if self._group is not None and self.is_alive:
            self._group.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    # -- what arrives ------------------------------------------------------------------------------------------------

    def _feed(self, fd: int, data: bytes) -> None:
        if fd == STDERR:
            self._stderr += data
            del self._stderr[:-STDERR_TAIL]
            return
        for line in self._lines.feed(data):
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            log.debug("MCP server '%s' wrote a line that is not a message", self._server.name)
            return
        for one in message if isinstance(message, list) else [message]:
            if isinstance(one, dict):
                self._take_message(one)

    def _take_message(self, message: dict[str, Any]) -> None:
        number = message.get("id")
        if "method" in message:
            if number is not None:
                self._answer(number, message["method"])
            elif message["method"] == "notifications/tools/list_changed":
                self.has_other_tools = True
            return
        reply = self._waiting.get(number) if isinstance(number, int) else None
        if reply is not None and not reply.done():
            reply.set_result(message)

    def _answer(self, number: object, method: object) -> None:
        """Answer a request of the server. Only ping is supported."""
        if method == "ping":
            self._send({"id": number, "result": {}})
        else:
            error = {"code": -32601, "message": f"this client does not support {method}"}
            self._send({"id": number, "error": error})

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _watch(self, group: ProcessGroup) -> None:
        await group.exited.wait()
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(McpError(self._exit_message()))

    def _exit_message(self) -> str:
        code = self._group.exit_code if self._group else -1
        said = self._stderr.decode("utf-8", "replace").strip()
        return f"the MCP server ended with code {code}" + (f"; its last output: {said[-500:]}" if said else "")

    async def close(self) -> None:
        """Close the server's stdin, which requests its end; then send SIGTERM, then SIGKILL."""
        if self._group is None:
            return
        self._group.close_stdin()
        if not await self._group.ends_within(CLOSE_S):
            self._group.signal(signal.SIGTERM)
            await self._group.ends_within(TERMINATE_S)
        await self._processes.finish(self._group)
        if self._watching is not None:
            await self._watching


def _result(message: dict[str, Any]) -> dict[str, Any]:
    if "error" in message:
        error = message["error"]
        raise McpRefused(str(error.get("message", "unknown error") if isinstance(error, dict) else error))
    result = message.get("result")
    if not isinstance(result, dict):
        raise McpError("the MCP server's answer has no result")
    return result


class _LineSplitter:
    """Splits the received data into lines; a line that is too long is dropped up to its end."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._is_dropping = False

    def feed(self, data: bytes) -> list[bytes]:
        *ends, rest = data.split(b"\n")
        lines: list[bytes] = []
        for end in ends:
            line = bytes(self._rest + end)
            self._rest.clear()
            if not self._is_dropping and line.strip() and len(line) <= MAX_MESSAGE:
                lines.append(line)
            self._is_dropping = False
        self._rest += rest
        if len(self._rest) > MAX_MESSAGE:
            self._rest.clear()
            self._is_dropping = True
        return lines
