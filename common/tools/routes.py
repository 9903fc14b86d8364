"""The routes of server-side tools in router and worker: `/tools` and `/cors-proxy`, 403 unless a flag enables them.

Called by the two `app` modules. Modules for a feature are imported only if it is enabled, so a disabled feature costs
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from ..base.errors import FeatureDisabled
from ..web.application import RUNNING, Handler, Route
from ..web.foreign_pages import refuse_foreign_page

if TYPE_CHECKING:
    from ..base.common_settings import ServerSettings

log = logging.getLogger("corral.tools")


def tool_routes(app: web.Application, settings: ServerSettings, environ: Mapping[str, str]) -> list[Route]:
    """Return the routes; their processes are started and ended with `app`. Raise ConfigError.

    `environ`: environment for the processes of tools, without the keys of this server.
    """
    routes = [*_tools(app, settings, environ), *_proxy(app, settings)]
    return [(method, path, handler if handler is refuse else _guarded(handler)) for method, path, handler in routes]


async def refuse(request: web.Request) -> web.StreamResponse:
    raise FeatureDisabled


def _guarded(handler: Handler) -> Handler:
    """Return the handler, refused to foreign pages with every method: a GET uses an MCP server or another host, too."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        refuse_foreign_page(request)
        return await handler(request)

    return guarded


def _tools(app: web.Application, settings: ServerSettings, environ: Mapping[str, str]) -> list[Route]:
    if not (settings.endpoints.tools or settings.endpoints.mcp_servers_config or settings.endpoints.mcp_servers_json):
        return [("GET", "/tools", refuse), ("POST", "/tools", refuse)]
    from .http import ToolHandlers
    from .server import ToolServer

    server = ToolServer(settings, environ)
    handlers = ToolHandlers(server)

    async def running(_: web.Application) -> AsyncIterator[None]:
        await server.start()
        yield
        await server.close()

    app.cleanup_ctx.append(running)
    app[RUNNING].at_end.append(server.close)  # requests that wait for a tool get their answer then
    _warn("server-side tools are enabled: every client that can reach this server can use them", settings)
    return [("GET", "/tools", handlers.show), ("POST", "/tools", handlers.call)]


def _proxy(app: web.Application, settings: ServerSettings) -> list[Route]:
    if not settings.http.ui_mcp_proxy:
        return [("GET", "/cors-proxy", refuse), ("POST", "/cors-proxy", refuse)]
    from .cors_proxy import CorsProxy

    proxy = CorsProxy()
    app.cleanup_ctx.append(proxy.session)
    _warn(
        "the CORS proxy is enabled: every client of this server can send requests to hosts that it can reach", settings
    )
    return [("GET", "/cors-proxy", proxy.forward), ("POST", "/cors-proxy", proxy.forward)]


def _warn(what: str, settings: ServerSettings) -> None:
    has_key = bool(settings.http.api_key or settings.http.api_key_file)
    log.warning("%s%s", what, "" if has_key else ", and no API key is required (--api-key)")
