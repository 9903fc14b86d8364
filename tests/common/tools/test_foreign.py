"""Foreign pages: calls to tools that a browser sends for pages of other origins are refused before any effect."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.tools.foreign import ForeignPage, page_check
from llama_corral.presets.options.settings import Settings
from tools_http import tools


def passes(origin: str | None, host: str | None, **options: object) -> bool:
    check = page_check(Settings(**{"tools": ("all",), **options}))  # type: ignore[arg-type]
    if check is None:
        return True
    try:
        check(origin, host)
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
    ],
)
def test_which_pages_may_call_tools(origin: str | None, host: str | None, expected: bool) -> None:
    assert passes(origin, host) is expected


def test_the_operator_can_allow_other_pages() -> None:
    mine = {"cors_origins": "https://ui.example, https://other.example"}
    assert passes("https://ui.example", "ai.example", **mine)
    assert passes("https://other.example", "localhost", **mine)
    assert not passes("https://evil.example", "localhost", **mine)
    assert not passes("http://evil.example", "localhost", cors_origins="localhost")
    assert passes("https://evil.example", "evil.example", cors_origins="*")
    assert passes("https://evil.example", "evil.example", api_key=("sk",))


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
