"""The CORS proxy, with a real server as its target."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from aiohttp import web
from tools_http import ToolClient, tools

PREFIX = "x-llama-server-proxy-header-"


async def echo(request: web.Request) -> web.Response:
    body = await request.read()
    seen = {
        "method": request.method,
        "headers": {k.lower(): v for k, v in request.headers.items()},
        "body": body.decode(),
    }
    headers = {"Set-Cookie": "a=b", "Access-Control-Allow-Origin": "*", "Mcp-Session-Id": "s1", "Server": "theirs"}
    return web.json_response({**seen, "path": request.path_qs}, status=202, headers=headers)


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    await request.app[GO_ON].wait()
    await response.write(b"data: 2\n\n")
    return response


async def redirect(request: web.Request) -> web.Response:
    raise web.HTTPTemporaryRedirect(request.query["to"])


async def endless(request: web.Request) -> web.Response:
    raise web.HTTPFound("/endless")


async def nothing(request: web.Request) -> web.Response:
    return web.Response(status=204)


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"begin")
    assert request.transport
    request.transport.close()
    return response


GO_ON = web.AppKey("go_on", asyncio.Event)


@contextlib.asynccontextmanager
async def other_side() -> AsyncIterator[tuple[str, asyncio.Event]]:
    app = web.Application()
    app[GO_ON] = asyncio.Event()
    app.router.add_route("*", "/echo", echo)
    app.router.add_route("*", "/redirect", redirect)
    app.router.add_route("*", "/endless", endless)
    app.router.add_routes([web.get("/stream", stream), web.post("/nothing", nothing), web.get("/cut", cut)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", app[GO_ON]
    finally:
        await runner.cleanup()


async def fetch(t: ToolClient, url: str, method: str = "GET", **given: Any) -> httpx.Response:
    return await t.client.request(method, "/cors-proxy", params={"url": url}, **given)


async def test_forwarded_and_returned_headers() -> None:
    async with other_side() as (url, _), tools(ui_mcp_proxy=True, api_key=("sk-1",)) as t:
        own = {
            "Authorization": "Bearer sk-1",
            "Cookie": "session=1",
            "X-Api-Key": "sk-1",
            "Origin": "http://localhost:1",
        }
        named = {"Accept": "text/x", "AUTHORIZATION": "theirs", "content-type": "application/json"}
        dropped = {"Host": "evil", "Content-Length": "99", "Connection": "close", "accept-encoding": "br", "": "x"}
        headers = {**own, **{PREFIX + name: value for name, value in {**named, **dropped}.items()}}
        answer = await fetch(t, f"{url}/echo?a=1&b=%20", "POST", headers=headers, content=b'{"x": 1}')
        assert answer.status_code == 202
        seen = answer.json()
        assert (seen["method"], seen["body"], seen["path"]) == ("POST", '{"x": 1}', "/echo?a=1&b=%20")
        host = {"host": url.removeprefix("http://"), "content-length": "8"}
        assert seen["headers"] == {
            **host,
            "accept": "text/x",
            "authorization": "theirs",
            "content-type": "application/json",
        }
        assert answer.headers["mcp-session-id"] == "s1"
        assert answer.headers["server"] == "llama.cpp"
        assert answer.headers["access-control-allow-origin"] == "http://localhost:1"
        assert answer.headers["content-security-policy"] == "sandbox"
        assert "set-cookie" not in answer.headers
        assert (await fetch(t, f"{url}/echo")).status_code == 401


async def test_an_answer_is_streamed() -> None:
    async with other_side() as (url, go_on), tools(ui_mcp_proxy=True) as t:
        async with t.client.stream("GET", "/cors-proxy", params={"url": f"{url}/stream"}) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "data: 1"
            go_on.set()
            assert [line async for line in lines if line] == ["data: 2"]
        nothing = await fetch(t, f"{url}/nothing", "POST")
        assert (nothing.status_code, nothing.content) == (204, b"")
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(t, f"{url}/cut")


async def test_redirects_are_followed_up_to_a_limit_and_only_to_http() -> None:
    async with other_side() as (url, _), tools(ui_mcp_proxy=True) as t:
        answer = await fetch(t, f"{url}/redirect?to=/echo", "POST", content=b"\xef\xbb\xbfbody")
        assert (answer.json()["method"], answer.json()["body"]) == ("POST", "\ufeffbody"), "byte for byte"
        round_and_round = await fetch(t, f"{url}/endless")
        assert round_and_round.status_code == 502
        assert (await fetch(t, f"{url}/redirect?to=file:///etc/passwd")).status_code == 502


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("", 400, "scheme"),
        ("file:///etc/passwd", 400, "scheme"),
        ("ftp://host/x", 400, "scheme"),
        ("//host/x", 400, "scheme"),
        ("unix:/run/x.sock", 400, "scheme"),
        ("http://", 400, "host"),
        ("http:///path", 400, "host"),
        ("http://user:password@host/", 400, "authentication"),
        ("http://user@host/", 400, "authentication"),
        ("http://host:99999/", 400, "invalid target URL"),
        ("http://[::1", 400, "invalid target URL"),
        ("http://a b/", 400, "is not a valid host name"),
        ("http://a\0/", 400, "is not a valid host name"),
        ("http://127.0.0.1:1/", 502, "proxy error"),
        ("http://no-such-host.invalid/", 502, "proxy error"),
    ],
)
async def test_invalid_addresses_are_refused(url: str, status: int, said: str) -> None:
    async with tools(ui_mcp_proxy=True) as t:
        response = await fetch(t, url)
        assert (response.status_code, said in response.json()["error"]["message"]) == (status, True), response.text


async def test_the_proxy_is_off_by_default() -> None:
    async with tools(tools=("all",)) as t:
        for method in ("GET", "POST"):
            response = await fetch(t, "http://127.0.0.1:1/", method)
            assert (response.status_code, response.json()["error"]["type"]) == (403, "feature_disabled")
