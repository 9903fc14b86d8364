"""Owns all tools of one router or worker: the list of tools, the place where they run, startup and shutdown.

Created by `routes` if a flag enables tools. Owns the processes, the MCP servers and the container; the handlers of
`http` use it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..base.errors import ConfigError
from ..base.user_files import directory_of
from .builtin import ToolRunner, builtin_tools
from .catalog import CATALOG
from .container import OwnContainer
from .errors import RuntimeRefused
from .mcp_config import read_servers
from .mcp_servers import McpServers
from .process import Processes
from .runtimes import Image, parse_option
from .tool import ServerTool

if TYPE_CHECKING:
    from ..base.common_settings import ServerSettings

log = logging.getLogger("corral.tools")


class ToolServer:
    """The tools of one server. Raise ConfigError for invalid options. Nothing is started before `start`."""

    def __init__(self, settings: ServerSettings, environ: Mapping[str, str]) -> None:
        _check(settings)
        self.processes = Processes(environ)
        self._builtin = builtin_tools(settings.endpoints.tools, ToolRunner(self.processes, settings.corral.tools_root))
        self._mcp = McpServers(read_servers(settings), self.processes)
        self._runtime = settings.endpoints.tools_runtime
        self._is_bound = bool(settings.endpoints.tools_runtime or settings.corral.tools_root)
        self._container = self._own_container()

    def _own_container(self) -> OwnContainer | None:
        try:
            target = parse_option(self._runtime)
        except RuntimeRefused as error:
            raise ConfigError(f"--tools-runtime: {error}") from None
        return OwnContainer(target, self.processes) if isinstance(target, Image) else None

    async def start(self) -> None:
        """Start the container and the MCP servers. Raise ConfigError if the container cannot be started."""
        if self._container is not None:
            await self._container.runtime()
        self._mcp.start()

    async def tools(self) -> list[ServerTool]:
        return list(self._by_name(await self._mcp.tools()).values())

    async def tool(self, name: str) -> ServerTool | None:
        """Return the tool with this name. Wait for slow MCP servers only if no other server has it."""
        return self._by_name(self._mcp.known()).get(name) or self._by_name(await self._mcp.tools(name)).get(name)

    def _by_name(self, of_servers: Sequence[ServerTool]) -> dict[str, ServerTool]:
        """Return the tools by name; the first of a name wins, so MCP tools cannot replace built-in ones."""
        found: dict[str, ServerTool] = {}
        for tool in (*self._builtin, *of_servers):
            if found.setdefault(tool.shown.name, tool) is not tool:
                log.debug("two tools have the name %s, using the first", tool.shown.name)
        return found

    async def runtime(self, asked: str) -> str:
        """Return the runtime of a call whose request names the runtime `asked`.

        Raise RuntimeRefused if the operator has chosen another one.
        """
        own = await self._container.runtime() if self._container is not None else self._runtime
        if asked and asked != own and self._is_bound:
            raise RuntimeRefused("a request may not choose the tool runtime: the server's options say where tools run")
        return own or asked

    async def close(self) -> None:
        """End all processes within two seconds, whatever the tools do."""
        self.processes.is_closed = True
        ends = [self._mcp.close()]
        if self._container is not None:
            ends.append(self._container.close())
        await asyncio.gather(*ends)
        self.processes.close()


def _check(settings: ServerSettings) -> None:
    if os.name != "posix":
        raise ConfigError("tools and MCP servers need a POSIX system: they use process groups")
    known = [entry.name for entry in CATALOG]
    for name in settings.endpoints.tools:
        if name not in (*known, "all"):
            raise ConfigError(f"--tools: unknown tool '{name}'. available tools: {', '.join(known)}")
    if not settings.corral.tools_root:
        return
    directory_of("--tools-root", settings.corral.tools_root)
    if settings.endpoints.tools_runtime:
        raise ConfigError("--tools-root is for tools on this machine: it cannot be combined with --tools-runtime")
    if {"all", "exec_shell_command"} & set(settings.endpoints.tools):
        raise ConfigError(
            "--tools-root cannot restrict exec_shell_command: name the other tools, or run all tools in a container "
            "(--tools-runtime docker:IMAGE)"
        )
