"""Foreign pages: requests that a browser sends for pages of other origins are refused before they change anything."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.web.application import Route, json_response
from llama_corral.common.web.foreign_pages import ForeignPage, PagePolicy
from llama_corral.common.web.unsupported import UNSUPPORTED
from llama_corral.presets.options.settings import Settings
from tools_http import tools
from web_tools import serving, settings


def passes(origin: str | None, host: str | None, site: str | None = None, **options: object) -> bool:
    policy = PagePolicy(Settings.of(**{"tools": ("all",), **options}))  # type: ignore[arg-type]
    try:
        policy.check_change(origin, site, host)
    except ForeignPage:
        return False
    return True


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        (None, "127.0.0.1:8080", True),
        (None, "localhost:8080", True),
        (None, "[::1]:8080", True),
        (None, "192.168.1.5:8080", True),
        (None, "corral:8080", True),
        (None, "box.local", True),
        (None, None, True),
        (None, "rebound.example:8080", False),
        ("http://localhost:3000", "localhost:8080", True),
        ("http://[::1]:3000", "127.0.0.1:8080", True),
        ("http://192.168.1.5:8080", "192.168.1.5:8080", True),
        ("http://192.168.1.6:8080", "192.168.1.5:8080", False),
        ("http://corral:8080", "corral:8080", True),
        ("https://evil.example", "localhost:8080", False),
        ("http://evil.example:8080", "evil.example:8080", False),
        ("http://localhost.evil.example", "localhost", False),
        ("http://localhost:3000", "evil.example", False),
        ("null", "localhost:8080", False),
        ("", "localhost:8080", False),
        ("http://[", "localhost:8080", False),
        ("null", "", False),
        ("http://192.168.1.5:x", "192.168.1.5:x", False),
        ("https://box.lan", "BOX.lan:443", True),
        ("http://Box.lan", "box.lan", True),
        ("http://box.lan:80", "box.lan", True),
        ("https://box.lan", "box.lan:80", False),
        ("http://box.lan:8080", "box.lan", False),
        ("http://[fe80::1]", "[FE80::1]:80", True),
        (None, "llama.default.svc:8080", True),
        (None, "llama.test", True),
        (None, "box.home", True),
        (None, "box.corp", True),
        (None, "box.localdomain", True),
        (None, "box.tailnet.ts.net", False),
        (None, "llama.default", False),
        ("app://obsidian.md", "localhost:8080", True),
        ("tauri://localhost", "127.0.0.1:8080", True),
        ("http://tauri.localhost", "127.0.0.1:8080", True),
        ("vscode-webview://1a2b3c", "192.168.1.5:8080", True),
        ("vscode-file://vscode-app", "localhost:8080", True),
        ("app://obsidian.md", "evil.example", False),
        ("chrome-extension://abc", "localhost:8080", False),
        ("http://app", "localhost:8080", False),
        ("app", "localhost:8080", False),
        ("app:", "localhost:8080", False),
        ("https://tauri", "localhost:8080", False),
    ],
)
def test_which_pages_may_change_something(origin: str | None, host: str | None, expected: bool) -> None:
    assert passes(origin, host) is expected


def test_the_operator_can_allow_other_pages() -> None:
    mine = {"cors_origins": "https://ui.example, https://other.example"}
    assert passes("https://ui.example", "ai.example", **mine)
    assert passes("https://other.example", "localhost", **mine)
    assert not passes("https://evil.example", "localhost", **mine)
    assert not passes("http://evil.example", "localhost", cors_origins="localhost")
    assert passes("https://evil.example", "evil.example", cors_origins="*")


@pytest.mark.parametrize(
    ("site", "host", "expected"),
    [
        ("none", "localhost:8080", True),
        ("same-origin", "192.168.1.5:8080", True),
        ("same-site", "localhost:8080", True),
        ("same-site", "192.168.1.5:8080", False),
        ("cross-site", "localhost:8080", False),
    ],
)
def test_a_browser_says_how_a_page_without_origin_is_related(site: str, host: str, expected: bool) -> None:
    assert passes(None, host, site) is expected


def test_names_of_reverse_proxies_and_containers() -> None:
    names = {"allowed_hosts": ("ai.example", ".lan.example")}
    assert passes(None, "AI.example.:443", **names)
    assert passes("https://ai.example", "127.0.0.1:8080", **names), "the proxy does not forward its name"
    assert passes("https://box.lan.example", "box.lan.example", **names)
    assert not passes(None, "lan.example.evil", **names)
    assert not passes("https://evil.example", "ai.example", **names)
    assert passes(None, "any.example", allowed_hosts=("*",))
    assert not passes("https://evil.example", "any.example", allowed_hosts=("*",))
    PagePolicy(Settings.of(host=("box.example",))).check_change(None, None, "box.example:80")


FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "chrome-extension://abc"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Host": "evil.example"},
)
PLAIN = {"Content-Type": "text/plain"}


async def _ok(request: web.Request) -> web.StreamResponse:
    return json_response({})


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_every_method_that_changes_something_is_checked(method: str, headers: dict[str, str]) -> None:
    routes: list[Route] = [(method, "/echo", _ok) for method in ("PUT", "PATCH", "DELETE")]
    async with serving(settings(), routes=routes) as (client, _, _):
        answer = await client.request(method, "/echo", content=b"{}", headers=PLAIN | headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
        assert (await client.post("/echo", content=b"{}", headers=PLAIN)).status_code == 200
        assert (await client.get("/health", headers=headers)).status_code == 200


async def test_with_a_key_every_page_may_change_something() -> None:
    async with serving(settings(api_key=("k",))) as (client, _, _):
        for headers in FOREIGN:
            answer = await client.post("/echo", content=b"{}", headers={"Authorization": "Bearer k", **headers})
            assert answer.status_code == 200


def _page(origin: str) -> dict[str, str]:
    """Return the headers of a page whose chat uses this server under a public name."""
    return PLAIN | {"Origin": origin, "Sec-Fetch-Site": "cross-site", "Host": "ai.example"}


async def test_text_is_generated_for_pages_of_allowed_origins() -> None:
    async def status(client: httpx.AsyncClient, origin: str) -> int:
        return (await client.post("/v1/completions", content=b"{}", headers=_page(origin))).status_code

    routes: list[Route] = [("POST", "/v1/completions", _ok)]
    async with serving(settings(), routes=routes) as (client, _, _):
        assert await status(client, "https://chat.example") == 200
    async with serving(settings(cors_origins="https://chat.example"), routes=routes) as (client, _, _):
        assert await status(client, "https://chat.example") == 200
        assert await status(client, "https://evil.example") == 403


@pytest.mark.parametrize("prefix", ["", "/prefix"])
@pytest.mark.parametrize(
    ("method", "route", "path"),
    [
        ("DELETE", "/v1/stream", "/v1/stream?conv_id=1"),
        ("POST", "/v1/responses/{id}/cancel", "/v1/responses/resp_1/cancel"),
        ("DELETE", "/v1/responses/{id}", "/v1/responses/resp_1"),
        ("DELETE", "/responses/{id}", "/responses/resp_1"),
    ],
)
async def test_a_page_under_a_public_name_may_end_what_it_generates(
    method: str, route: str, path: str, prefix: str
) -> None:
    async def status(client: httpx.AsyncClient, origin: str, path: str = path) -> int:
        return (await client.request(method, prefix + path, headers=_page(origin))).status_code

    routes: list[Route] = [(method, route, _ok), (method, "/other", _ok)]
    async with serving(settings(api_prefix=prefix), routes=routes) as (client, _, _):
        assert await status(client, "https://ai.example") == 200
        assert await status(client, "https://ai.example", "/other") == 403
        assert await status(client, "https://chat.example") == 403
        assert (await client.request(method, prefix + path, headers={"Host": "ai.example"})).status_code == 403
    named = settings(api_prefix=prefix, cors_origins="https://chat.example")
    async with serving(named, routes=routes) as (client, _, _):
        assert await status(client, "https://chat.example") == 200


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/nowhere", 404),
        ("PUT", "/health", 404),
        ("DELETE", "/v1/responses/1/2/3", 404),
        *((method, path, 501) for method, path, _ in UNSUPPORTED),
    ],
)
async def test_what_does_not_exist_is_said_to_every_page(method: str, path: str, expected: int) -> None:
    async with serving(settings(), routes=UNSUPPORTED) as (client, _, _):
        for headers in ({"Host": "ai.example"}, _page("https://chat.example")):
            assert (await client.request(method, path, headers=headers)).status_code == expected


@given(st.text(), st.text())
def test_any_header_is_allowed_or_refused(origin: str, host: str) -> None:
    assert passes(origin, host) in (True, False)


async def test_a_call_from_a_foreign_page_has_no_effect(tmp_path: Path) -> None:
    async with tools(tools=("all",), ui_mcp_proxy=True) as t:
        call = {"tool": "write_file", "params": {"path": str(tmp_path / "pwned"), "content": "x"}}
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
            for method, path in (
                ("POST", "/tools"),
                ("GET", "/tools"),
                ("GET", "/cors-proxy?url=http://127.0.0.1:1"),
            ):
                response = await t.client.request(
                    method, path, json=call if method == "POST" else None, headers=headers
                )
                assert (response.status_code, response.json()["error"]["type"]) == (403, "permission_error")
        assert not (tmp_path / "pwned").exists()
        response = await t.client.post("/tools", json=call, headers={"Origin": "http://localhost:5173"})
        assert response.status_code == 200
