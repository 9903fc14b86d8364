"""The access log of a small application: one line for each request, refused ones too, and what the lines contain."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.logs import MAX_TEXT, one_line
from llama_corral.common.web.access_log import CLIENT_LEFT, AccessLog, level_of, message_of, note_model
from programs import wait_until
from web_tools import serving, settings

LINE = re.compile(r"(\S+) (\S+) (\S+)(?: name=\S+)? (\d+) [\d.]+ ms(?:: (.*))?")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Return a function that returns the lines so far: level, peer, method, path, status and message."""
    caplog.set_level(logging.DEBUG, "corral.access")

    def read() -> list[tuple[str, ...]]:
        records = [record for record in caplog.records if record.name == "corral.access"]
        found = [(record.levelname, LINE.fullmatch(record.getMessage())) for record in records]
        assert all(match for _, match in found), [record.getMessage() for record in records]
        return [(level, *(part or "" for part in match.groups())) for level, match in found if match]

    return read


async def test_every_refusal_has_one_line_with_its_message(lines: Any) -> None:
    async with serving(settings(max_body=100, api_key=("secret-key",))) as (client, _, _):
        key = {"Authorization": "Bearer secret-key"}
        await client.post("/nothing", content=b"{}", headers=key)
        await client.post("/echo", content=b"{", headers=key)
        await client.post("/echo", content=b"x" * 101, headers=key)
        await client.post("/echo?key=hidden", content=b"{}", headers={"Authorization": "Bearer wrong-key"})
        await client.get("/fail/full", headers=key)
        await client.get("/fail/bug", headers=key)
        await client.post("/echo", content=b"{}", headers=key)
    found = lines()
    assert [line[:5] for line in found] == [
        ("INFO", "127.0.0.1", "POST", "/nothing", "404"),
        ("INFO", "127.0.0.1", "POST", "/echo", "400"),
        ("INFO", "127.0.0.1", "POST", "/echo", "413"),
        ("INFO", "127.0.0.1", "POST", "/echo", "401"),
        ("INFO", "127.0.0.1", "GET", "/fail/full", "503"),
        ("INFO", "127.0.0.1", "GET", "/fail/bug", "500"),
        ("INFO", "127.0.0.1", "POST", "/echo", "200"),
    ]
    messages = [line[5] for line in found]
    assert messages[0] == "File Not Found"
    assert messages[1].startswith("the request body cannot be parsed as JSON")
    assert "--max-body" in messages[2]
    assert messages[3:] == ["Invalid API Key", "full", "unexpected ValueError, see the server's log", ""]


async def test_no_key_and_no_query_is_logged(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(settings(api_key=("secret-key",))) as (client, _, _):
        for key in ("secret-key", "wrong-key"):
            await client.post(f"/echo?api_key={key}", content=b"{}", headers={"X-Api-Key": key})
    assert len(lines()) == 2
    assert "-key" not in caplog.text


async def test_looking_at_the_server_is_logged_at_debug_unless_it_is_refused(lines: Any) -> None:
    ready = False
    async with serving(settings(), is_ready=lambda: ready) as (client, _, _):
        await client.get("/health")
        ready = True
        for path in ("/health", "/", "/sw.js", "/slow"):
            await client.get(path)
        await client.options("/echo")
        await client.head("/")
        await client.get("/nothing")
    assert [level for level, *_ in lines()] == ["DEBUG"] * 7 + ["INFO"]


async def _raw(port: int | None, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("data", "method", "path"),
    [
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n", "POST", "/echo"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "-", "-"),
        (b"GET /a?key=1 HTTP/1.1\r\nHost: x\r\nContent-Length: nine\r\n\r\n", "GET", "/a"),
    ],
)
async def test_invalid_http_has_a_line(lines: Any, data: bytes, method: str, path: str) -> None:
    async with serving(settings()) as (_, listening, _):
        assert b" 400 " in await _raw(listening.port, data)
    ((level, peer, *rest),) = lines()
    assert (level, peer, *rest[:3]) == ("INFO", "127.0.0.1", method, path, "400")
    assert rest[3].startswith("the request cannot be read: ")


@pytest.mark.parametrize("query", ["", "?stream=1"])
async def test_a_client_that_leaves_has_a_line(lines: Any, query: str) -> None:
    async with serving(settings()) as (_, listening, cancelled):
        _, writer = await asyncio.open_connection("127.0.0.1", listening.port)
        writer.write(f"GET /hang{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.wait_for(cancelled.wait(), 10)
        await asyncio.to_thread(wait_until, lines, "the line")
    assert [line[2:] for line in lines()] == [("GET", "/hang", str(CLIENT_LEFT), "the client disconnected")]


async def test_a_failure_after_the_status_is_in_the_line(lines: Any) -> None:
    async with serving(settings()) as (_, listening, _):
        await _raw(listening.port, b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.to_thread(wait_until, lines, "the line")
    assert [line[3:] for line in lines()] == [("/late", "200", "too late")]


async def test_a_client_cannot_add_lines(lines: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(settings()) as (client, listening, _):
        await client.get("/x%0a2026-01-01 W router: forged%1b[31m")
        await _raw(listening.port, "GET /\u202ex\x85y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        await client.get("/fail/bug%0aforged")
    assert all(record.getMessage().isprintable() for record in caplog.records if record.name.startswith("corral"))
    assert len(lines()) == 3


async def test_nothing_is_formatted_when_the_log_is_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "corral.access")
    monkeypatch.setattr("llama_corral.common.web.access_log.failure_in", pytest.fail)
    async with serving(settings()) as (client, _, _):
        assert (await client.post("/nothing")).status_code == 404
    assert not [record for record in caplog.records if record.name == "corral.access"]


@pytest.mark.parametrize(
    ("method", "path", "status", "level"),
    [
        ("POST", "/v1/chat/completions", 200, logging.INFO),
        ("GET", "/models", 200, logging.DEBUG),
        ("GET", "/models/sse", CLIENT_LEFT, logging.DEBUG),
        ("GET", "/models", 401, logging.INFO),
        ("GET", "/llm/health", 503, logging.DEBUG),
        ("GET", "/v1/stream", 200, logging.INFO),
        ("DELETE", "/models", 200, logging.INFO),
    ],
)
def test_levels(method: str, path: str, status: int, level: int) -> None:
    assert level_of(method, path, status) == level


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "m"}}', "m"),
        (b'{"error": "ollama"}', "ollama"),
        (b'{"type": "error", "error": {"type": "x", "message": "anthropic"}}', "anthropic"),
        (b'{"type": "response.failed", "response": {"error": {"code": "x", "message": "responses"}}}', "responses"),
        (b'{"type": "response.completed", "response": {"error": null}}', ""),
        (b'{"error": {"message": 1}}', ""),
        (b'["error"]', ""),
        (b"<html>", ""),
        (b"[" * 100_000, ""),
        (b"", ""),
        (None, ""),
    ],
)
def test_messages_of_every_dialect(body: bytes | None, message: str) -> None:
    assert message_of(body) == message


@given(st.text(max_size=2 * MAX_TEXT))
def test_a_text_becomes_one_printable_line(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert len(shown) <= 10 * (MAX_TEXT + 1)
    assert shown == text or not text.isprintable() or len(text) > MAX_TEXT


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a", "a"),
        ("a b", '"a b"'),
        ('x"', r'"x\""'),
        ('x" 200 1.0 ms: "', r'"x\" 200 1.0 ms: \""'),
        ("x\n\x1b[31m", r"x\n\x1b[31m"),
    ],
)
def test_a_model_name_is_one_word_of_the_line(name: str, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "corral.access")
    request = make_mocked_request("POST", "/x")
    note_model(request, name)
    AccessLog(logging.getLogger("corral.access"), "").log(request, web.Response(status=404), 0.001)
    assert caplog.messages == [f"unix POST /x name={shown} 404 1.0 ms"]
