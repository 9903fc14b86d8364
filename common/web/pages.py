"""Routes for browsers: the page at `/` and its small files, or a folder of the user (`--path`).

Router and worker pass the HTML of their page; the rest is the same for both.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from ..base.errors import ConfigError, NotFound
from .application import Route, json_response

if TYPE_CHECKING:
    from ..base.common_settings import ListenSettings

NO_CACHE = {hdrs.CACHE_CONTROL: "no-cache"}

REMOVE_SERVICE_WORKER = """\
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(retire()));
async function retire() {
  await self.registration.unregister();
  await Promise.all((await caches.keys()).map((name) => caches.delete(name)));
  for (const tab of await self.clients.matchAll({ type: "window" })) tab.navigate(tab.url);
}
"""
"""Removes the service worker of llama-server's UI: a browser that used that UI would otherwise keep showing it."""


def page_routes(settings: ListenSettings, html: str, name: str = "llama-corral") -> list[Route]:
    """Return the GET routes for `/` and its files. With `--no-ui`, GET is a 404, but many clients check HEAD `/`."""

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text=html, content_type="text/html", charset="utf-8", headers=NO_CACHE)

    async def alive(request: web.Request) -> web.StreamResponse:
        return web.Response(content_type="text/html", charset="utf-8")

    async def retire_service_worker(request: web.Request) -> web.StreamResponse:
        return web.Response(text=REMOVE_SERVICE_WORKER, content_type="application/javascript", headers=NO_CACHE)

    async def manifest(request: web.Request) -> web.StreamResponse:
        shown = {"name": name, "short_name": name, "start_url": "./", "display": "standalone", "icons": []}
        response = json_response(shown)
        response.headers[hdrs.CONTENT_TYPE] = "application/manifest+json"
        return response

    async def version(request: web.Request) -> web.StreamResponse:
        return json_response({"version": name})

    if not settings.http.ui:
        return [("HEAD", "/", alive), ("GET", "/sw.js", retire_service_worker)]
    if settings.http.path:
        return [("HEAD", "/", alive), *_folder_routes(Path(settings.http.path))]
    return [
        ("GET", "/", page),
        ("GET", "/index.html", page),
        ("GET", "/sw.js", retire_service_worker),
        ("GET", "/manifest.webmanifest", manifest),
        ("GET", "/_app/version.json", version),
    ]


def _folder_routes(folder: Path) -> list[Route]:
    """Return a route for the files of a folder. It matches any path, so it must be added after all other routes."""
    if not folder.is_dir():
        raise ConfigError(f"--path {folder}: no such directory")
    root = folder.resolve()

    async def file(request: web.Request) -> web.StreamResponse:
        asked = request.match_info["file"]
        try:
            found = (root / asked).resolve()
            if found.is_dir():
                found /= "index.html"
            inside = found.is_relative_to(root) and found.is_file()
        except (OSError, ValueError):  # too long, a link loop, or a NUL
            inside = False
        if inside:
            return web.FileResponse(found)
        if asked == "sw.js":
            return web.Response(text=REMOVE_SERVICE_WORKER, content_type="application/javascript", headers=NO_CACHE)
        raise NotFound()

    return [("GET", "/{file:.*}", file)]
