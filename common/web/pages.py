"""Routes for browsers: the page at `/` and its small files, or a folder of the user (`--path`).

Router and worker pass the HTML of their page; the rest is the same for both. A folder with an index file is a page: its
files need no key, like the page at `/`, because a browser cannot send a key before the page runs. Hidden files do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from ..base.errors import NotFound
from ..base.user_files import directory_of
from .application import PUBLIC_HANDLERS, Handler, Route, add_routes, json_response

if TYPE_CHECKING:
    from ..base.common_settings import ServerSettings

INDEX = "index.html"
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


def add_pages(app: web.Application, settings: ServerSettings, html: str, name: str = "llama-corral") -> None:
    """Add the GET routes for `/` and its files. With `--no-ui`, GET is a 404, but many clients check HEAD `/`.

    A folder's route matches any path, so these routes must be added after all others. Raises ConfigError.
    """
    if settings.http.ui and settings.http.path:
        folder = Path(settings.http.path)
        serve_file = _file_handler(folder)
        add_routes(app, settings, [("HEAD", "/", _alive), ("GET", "/{file:.*}", serve_file)])
        if (folder / INDEX).is_file():
            app[PUBLIC_HANDLERS].add(serve_file)
    else:
        add_routes(app, settings, _page_routes(settings, html, name))


async def _alive(request: web.Request) -> web.StreamResponse:
    return web.Response(content_type="text/html", charset="utf-8")


def _page_routes(settings: ServerSettings, html: str, name: str) -> list[Route]:

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text=html, content_type="text/html", charset="utf-8", headers=NO_CACHE)

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
        return [("HEAD", "/", _alive), ("GET", "/sw.js", retire_service_worker)]
    return [
        ("GET", "/", page),
        ("GET", "/index.html", page),
        ("GET", "/sw.js", retire_service_worker),
        ("GET", "/manifest.webmanifest", manifest),
        ("GET", "/_app/version.json", version),
    ]


def _file_handler(folder: Path) -> Handler:
    """Return the handler for the files of a folder. Raises ConfigError."""
    root = directory_of("--path", str(folder)).resolve()

    async def file(request: web.Request) -> web.StreamResponse:
        asked = request.match_info["file"]
        try:
            found = (root / asked).resolve()
            if found.is_dir():
                found /= INDEX
            inside = found.is_relative_to(root) and found.is_file()
        except (OSError, ValueError):  # too long, a link loop, or a NUL
            inside = False
        if inside:
            return web.FileResponse(found)
        if asked == "sw.js":
            return web.Response(text=REMOVE_SERVICE_WORKER, content_type="application/javascript", headers=NO_CACHE)
        raise NotFound()

    return file
