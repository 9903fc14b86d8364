"""Runs a small application with the HTTP behaviour that router and worker share, on real sockets, for its tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
from aiohttp import web
from llama_corral.common.base import errors
from llama_corral.common.base.errors import ApiError
from llama_corral.common.web.application import Route, add_routes, application, event_stream, json_response
from llama_corral.common.web.auth import ApiKeys
from llama_corral.common.web.listen import Listening, listen
from llama_corral.common.web.pages import add_pages
from llama_corral.common.web.request_body import read_object
from llama_corral.presets.options.settings import Settings

PAGE = "<!doctype html><title>x</title>"


def settings(**given: Any) -> Settings:
    return Settings.of(**{"port": 0, **given})


@contextlib.asynccontextmanager
async def serving(
    given: Settings,
    is_ready: Callable[[], bool] = lambda: True,
    grace: float = 3.0,
    api_keys: ApiKeys | None = None,
    routes: Sequence[Route] = (),
) -> AsyncIterator[tuple[httpx.AsyncClient, Listening, asyncio.Event]]:
    """Yield a client for the application, its server, and an event that is set when a handler was cancelled."""
    cancelled = asyncio.Event()

    async def echo(request: web.Request) -> web.StreamResponse:
        return json_response(await read_object(request))

    async def fail(request: web.Request) -> web.StreamResponse:
        raise {"bug": ValueError("secret"), "full": errors.Unavailable("full")}[request.match_info["how"]]

    async def hang(request: web.Request) -> web.StreamResponse:
        try:
            if request.query.get("stream"):
                stream = event_stream()
                await stream.prepare(request)
                await stream.write(b"data: 1\n\n")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return json_response({"done": True})

    async def break_late(request: web.Request) -> web.StreamResponse:
        stream = event_stream()
        await stream.prepare(request)
        await stream.write(b"data: 1\n\n")
        raise ApiError("too late")

    app = application(given, is_ready=is_ready, api_keys=api_keys)
    add_routes(app, given, [("GET", "/health", ok), ("POST", "/echo", echo), ("GET", "/fail/{how}", fail)])
    add_routes(app, given, [("GET", "/hang", hang), ("GET", "/late", break_late), ("GET", "/slow", slow)])
    add_routes(app, given, routes)
    add_pages(app, given, PAGE)
    async with listen(app, given, grace=grace) as listening:
        address = listening.addresses[0]
        transport = httpx.AsyncHTTPTransport(uds=address[7:]) if address.startswith("unix://") else None
        url = "http://localhost" if transport else address
        async with httpx.AsyncClient(base_url=url, transport=transport, trust_env=False) as client:
            yield client, listening, cancelled


async def ok(request: web.Request) -> web.StreamResponse:
    return json_response({"status": "ok"})


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == response.status_code
    return error
