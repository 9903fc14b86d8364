"""Reads the MCP servers of `--mcp-servers-config` and `--mcp-servers-json`, in the usual format (from Cursor)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from ..base.errors import ConfigError
from ..base.user_files import read_text_of

if TYPE_CHECKING:
    from ..base.common_settings import ServerSettings

log = logging.getLogger("corral.tools")

TIMEOUT_MS = 30_000


class McpServer(Struct, frozen=True):
    """A program that speaks MCP on its standard input and output."""

    name: str
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables to add to our environment."""
    cwd: str = ""
    timeout: float = TIMEOUT_MS / 1000
    """Time limit of one request in seconds."""


def read_servers(settings: ServerSettings) -> tuple[McpServer, ...]:
    """Return the servers of both options, those of the file first. Raise ConfigError."""
    found: dict[str, McpServer] = {}
    for where, text in _sources(settings):
        for server in parse_servers(text, where):
            if server.name in found:
                log.warning("%s: MCP server '%s' is defined twice, using the first definition", where, server.name)
            found.setdefault(server.name, server)
    return tuple(found.values())


def _sources(settings: ServerSettings) -> list[tuple[str, str]]:
    sources = []
    if settings.endpoints.mcp_servers_config:
        option, path = "--mcp-servers-config", settings.endpoints.mcp_servers_config
        sources.append((f"{option} {path}", read_text_of(option, path, may_wait=True)))
    if settings.endpoints.mcp_servers_json:
        sources.append(("--mcp-servers-json", settings.endpoints.mcp_servers_json))
    return sources


def parse_servers(text: str, where: str) -> list[McpServer]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    servers = config.get("mcpServers", {}) if isinstance(config, dict) else None
    if not isinstance(servers, dict):
        raise ConfigError(f"{where}: expected an object with the servers in mcpServers")
    if not servers:
        log.warning("%s: no MCP server in mcpServers", where)
    return [server for name, entry in servers.items() if (server := _server(name, entry, f"{where}: {name}"))]


def _server(name: str, entry: object, where: str) -> McpServer | None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected an object")
    if entry.get("disabled") is True:
        return None
    command = _text(entry, "command", where)
    if not command:
        log.warning("%s: ignored, it has no command; only servers on standard input and output are supported", where)
        return None
    args, env = entry.get("args", []), entry.get("env", {})
    if not isinstance(args, list) or not all(isinstance(word, str) for word in args):
        raise ConfigError(f"{where}: args must be a list of strings")
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise ConfigError(f"{where}: env must be an object with string values")
    milliseconds = entry.get("timeout_ms", TIMEOUT_MS)
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or milliseconds <= 0:
        raise ConfigError(f"{where}: timeout_ms must be a number above 0")
    return McpServer(name, command, tuple(args), env, _text(entry, "cwd", where), milliseconds / 1000)


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key} must be a string")
    return value
