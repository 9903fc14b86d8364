"""The interface of all tools, built-in or from MCP servers: an entry in the list, and methods to call it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, Protocol

from msgspec import Struct, field

Answer = dict[str, Any] | bytes
"""An object, or bytes with an object as JSON, so that a large file in Base64 need not be parsed and encoded again."""


class ToolRequest(Struct, frozen=True):
    """One call of a tool. The last three fields come from headers, so the model cannot set them."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    cwd: str = ""
    runtime: str = ""
    as_base64: bool = False


class ToolListing(Struct, frozen=True):
    """The entry of a tool in the list of `/tools`."""

    name: str
    title: str
    definition: Mapping[str, Any]
    type: Literal["server", "mcp"] = "server"
    writes: bool = False
    uses_cwd: bool = True
    streams: bool = False

    def body(self) -> dict[str, Any]:
        return {
            "display_name": self.title,
            "tool": self.name,
            "type": self.type,
            "permissions": {"write": self.writes},
            "uses_cwd": self.uses_cwd,
            "definition": self.definition,
        }


class ServerTool(Protocol):
    @property
    def shown(self) -> ToolListing: ...

    async def run(self, call: ToolRequest) -> Answer:
        """Run the tool and return its answer; `{"error": …}` if it failed. Raise ApiError for an invalid call."""

    def stream(self, call: ToolRequest) -> AsyncGenerator[str, None]:
        """Yield the output of a tool that `streams`. Raise ToolFailed where `run` returns an error."""
