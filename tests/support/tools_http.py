"""Serves server-side tools on a real port, in the test's event loop, with a client for them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from llama_corral.common.tools.routes import tool_routes
from llama_corral.common.web.application import add_routes, application
from llama_corral.common.web.listen import listen
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.options.table import environment_without_keys
from router_tools import PATIENCE

FAKE_MCP = Path(__file__).resolve().parent / "fake_mcp.py"


@dataclass
class ToolClient:
    client: httpx.AsyncClient
    port: int

    async def post(self, tool: object, params: object = None, headers: Any = None, **more: Any) -> httpx.Response:
        return await self.client.post("/tools", json={"tool": tool, "params": params, **more}, headers=headers)

    async def call(self, tool: str, headers: dict[str, str] | None = None, **params: Any) -> dict[str, Any]:
        """Return the answer of a successful call."""
        response = await self.post(tool, params, headers)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def text(self, tool: str, headers: dict[str, str] | None = None, **params: Any) -> str:
        return str((await self.call(tool, headers, **params))["plain_text_response"])

    async def error(self, tool: str, headers: dict[str, str] | None = None, **params: Any) -> str:
        return str((await self.call(tool, headers, **params))["error"])

    async def names(self) -> list[str]:
        return [tool["tool"] for tool in (await self.client.get("/tools")).json()]

    async def events(self, tool: str, **params: Any) -> list[dict[str, Any]]:
        body = {"tool": tool, "params": params, "stream": True}
        async with self.client.stream("POST", "/tools", json=body) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"] == "text/event-stream"
            return [json.loads(line[6:]) async for line in response.aiter_lines() if line]


@contextlib.asynccontextmanager
async def tools(**given: Any) -> AsyncIterator[ToolClient]:
    settings = Settings(**{"port": 0, **given})
    app = application(settings)
    add_routes(app, settings, tool_routes(app, settings, environment_without_keys()))
    async with (
        listen(app, settings) as listening,
        httpx.AsyncClient(base_url=listening.addresses[0], timeout=PATIENCE, trust_env=False) as client,
    ):
        assert listening.port is not None
        yield ToolClient(client, listening.port)


def fake_mcp(*args: str, **more: Any) -> dict[str, Any]:
    """Return the configuration of tests/support/fake_mcp.py."""
    return {"command": sys.executable, "args": [str(FAKE_MCP), *args], **more}


def mcp_json(**servers: Any) -> str:
    return json.dumps({"mcpServers": servers})
