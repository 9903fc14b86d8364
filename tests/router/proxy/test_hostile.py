"""Test hostile and invalid requests: the router refuses them as client errors or forwards them, and keeps no state."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from llama_corral.common.web.request_body import OWN_BODY
from router_http import Gateway, gateway
from router_tools import PATIENCE, preset

PLAIN = b'{"model": "m", "prompt": "a"}'
MANAGEMENT = ("/models", "/models/load", "/models/unload", "/api/pull", "/api/show")
FORWARDED = ("/completion", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat", "/v1/embeddings")
WRONG: list[bytes] = [
    *(
        b"null",
        b"true",
        b"-1",
        b"1.5",
        b"1e400",
        b"NaN",
        b"9" * 5000,
        b'""',
        b'"\\ud800"',
        b'"a\\u0000b"',
        b"[]",
        b"{}",
    ),
    *(b"[" * 975 + b"]" * 975, b"[" * 10_000 + b"]" * 10_000, b'"' + b"A" * 100_000 + b'"', b'[null,{"a":[]}]'),
]
BROKEN: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff{}",
    b"{}{}",
    b'{"model":"\xff"}',
    b"{'model':1}",
    b"\0",
]


async def raw(g: Gateway, head: bytes, body: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
    length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    writer.write(b"POST /completion HTTP/1.1\r\nHost: x\r\n" + head + length + body)
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    writer.close()
    return int(answer[9:12]), answer.rpartition(b"\r\n\r\n")[2]


def reason(path: str, answer: Any) -> str:
    error = answer["error"]
    return str(error if path.startswith("/api/") else error["message"])


@pytest.mark.parametrize("path", [*MANAGEMENT, *FORWARDED])
async def test_an_invalid_model_name_is_a_client_error(path: str) -> None:
    async with gateway(preset("m")) as g:
        for sent in [*BROKEN, *(b'{"model": ' + wrong + b"}" for wrong in WRONG)]:
            response = await g.client.post(path, content=sent)
            expected = (413,) if len(sent) > OWN_BODY and path in MANAGEMENT else (400, 404)
            assert response.status_code in expected, (sent[:50], response.text[:300])
            assert reason(path, response.json())
        assert (await g.status("m"))["value"] == "unloaded"


KEPT: list[tuple[bytes, int]] = [
    *((wrong, 400) for wrong in (b"1e999", b'"x"', b"[]", b"{}", b"true", b'"\xff"', b'"-"', b'"1x"')),
    *((large, 200) for large in (b"1e308", b"-1e308", b'"99999999999999h"', b"9223372036854775807", b"0.0001")),
]


@pytest.mark.parametrize(("keep_alive", "status"), KEPT)
async def test_keep_alive_is_a_duration_or_refused(keep_alive: bytes, status: int) -> None:
    async with gateway(preset("m")) as g:
        response = await g.client.post("/api/chat", content=b'{"model": "m", "keep_alive": ' + keep_alive + b"}")
        assert response.status_code == status, response.text
        if status == 400:
            assert "keep_alive" in response.text or "cannot be parsed as JSON" in response.text
        assert (await g.client.get("/api/ps")).status_code == 200
        assert (await g.client.get("/models")).status_code == 200


@pytest.mark.parametrize(
    "head", [b"Expect: \xff\xfe\r\n", b"Connection: \xff\xfe\r\n", b"X-Conversation-Id: \xff\xfe\r\n"]
)
async def test_headers_that_are_not_text_are_forwarded_or_ignored(head: bytes) -> None:
    async with gateway(preset("m")) as g:
        assert (await raw(g, head, PLAIN))[0] == 200


async def test_a_body_that_does_not_match_its_content_encoding() -> None:
    async with gateway(preset("m")) as g:
        encoding = b"Content-Encoding: gzip\r\n"
        assert (await raw(g, encoding, gzip.compress(PLAIN)))[0] == 200
        status, body = await raw(g, encoding, PLAIN)
        assert status == 400
        assert "content-encoding: gzip" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("path", FORWARDED)
async def test_a_truncated_body_loads_no_model(path: str) -> None:
    async with gateway(preset("m")) as g:
        for broken, status in ((b"zz\r\n", 400), (None, 0)):
            reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
            writer.write(head.encode())
            async with asyncio.timeout(PATIENCE):
                await reader.readuntil(b"100 Continue\r\n\r\n")
                writer.write(b"f\r\n" + PLAIN[:15] + b"\r\n" + (broken or b""))
                if broken is None:
                    writer.write_eof()
                answer = await reader.read()
            writer.close()
            assert int(answer[9:12] or b"0") == status
            if status:
                assert "Invalid character in chunk size" in reason(path, json.loads(answer.rpartition(b"\r\n\r\n")[2]))
        assert (await g.status("m"))["value"] == "unloaded"
