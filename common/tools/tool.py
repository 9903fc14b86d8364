"""What a tool is to the server, wherever it comes from: an entry of the list, and something that can be called."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Answer = dict[str, Any] | bytes
"""An object, or one that is JSON already: a large file in Base64 need not be read here to be written again."""


@dataclass(frozen=True)
class ToolRequest:
    """One call as a request asks for it. The last three come from headers: a model has no say in them."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    cwd: str = ""
    runtime: str = ""
    as_base64: bool = False


@dataclass(frozen=True)
class ToolListing:
    """How `/tools` lists a tool."""

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
        """The answer; `{"error": …}` if the tool failed. Raises ApiError for a call that makes no sense."""

    def stream(self, call: ToolRequest) -> AsyncGenerator[str, None]:
        """The output as it comes, of a tool that `streams`. Raises ToolFailed in place of an answer with an error."""
