"""Test what a request's body may cost: compressed bodies, own routes, dense JSON, and refusals before it is read."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
import time
import zlib

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import BodyTooLarge, InvalidRequest
from llama_corral.common.web import inflate as module
from llama_corral.common.web import request_body
from llama_corral.common.web.application import json_response
from llama_corral.common.web.inflate import FREE_BYTES, MAX_RATIO, inflate
from llama_corral.common.web.json_values import MAX_MARKS, check_values
from llama_corral.common.web.listen import Listening
from llama_corral.common.web.request_body import (
    DENSE_BODY,
    GIVEN_BODY,
    SMALL,
    TINY,
    RequestLimits,
    off_the_loop,
    read_skipped_json,
    refuse_costly_json,
    uncompressed,
)
from web_tools import error_of, serving, settings

BOMB = gzip.compress(b'{"a": [' + b"[]," * 20_000_000 + b"1]}", 9)
"""60 MB in 60 KB."""
JSON = b'{"a": 1}'


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@given(st.binary(max_size=3000), st.integers(0, 3))
def test_a_compressed_body_is_decompressed(data: bytes, split: int) -> None:
    at = len(data) * split // 3
    assert inflate(gzip.compress(data), "gzip", 5000) == data
    assert inflate(gzip.compress(data[:at]) + gzip.compress(data[at:]), "gzip", 5000) == data
    assert inflate(zlib.compress(data), "deflate", 5000) == data
    assert inflate(raw_deflate(data), "deflate", 5000) == data


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "br", "zstd"]))
def test_any_body_is_decompressed_or_refused(data: bytes, encoding: str) -> None:
    for sent in (data, gzip.compress(data)[:-4], zlib.compress(data)[:-1], zlib.compress(data) + data):
        with contextlib.suppress(InvalidRequest):
            inflate(sent, encoding, 5000)


def test_the_result_is_limited_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match=f"more than {MAX_RATIO} times"):
        inflate(BOMB, "gzip", 1 << 30)
    with pytest.raises(OverflowError):
        inflate(BOMB, "gzip", 1000)
    with pytest.raises(InvalidRequest, match="more than 100 compressed parts"):
        inflate(gzip.compress(b"") * 100_000, "gzip", 1 << 30)
    made, decompressor = 0, zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._inner = decompressor(wbits)

        def decompress(self, data: bytes, most: int) -> bytes:
            nonlocal made
            piece = self._inner.decompress(data, most)
            made += len(piece)
            return piece

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

    monkeypatch.setattr(module.zlib, "decompressobj", Counting)
    with pytest.raises(InvalidRequest):
        inflate(BOMB, "gzip", 1 << 30)
    assert made < MAX_RATIO * len(BOMB) + FREE_BYTES


def test_repetitive_bodies_of_a_megabyte_are_read() -> None:
    assert len(inflate(gzip.compress(b"a" * 1_000_000), "gzip", 1 << 30)) == 1_000_000


async def test_a_compressed_bomb_is_refused() -> None:
    async with serving(settings()) as (client, _, _):
        before = time.process_time()
        for body, status in ((BOMB, 400), (gzip.compress(JSON), 200), (gzip.compress(JSON)[:-9], 400)):
            response = await client.post("/echo", content=body, headers={"Content-Encoding": "gzip"})
            assert response.status_code == status, response.text
        assert time.process_time() - before < 2
    async with serving(settings(max_body=1000)) as (client, _, _):
        body = gzip.compress(b" " * 2000 + JSON)
        response = await client.post("/echo", content=body, headers={"Content-Encoding": "gzip"})
        assert error_of(response)["code"] == 413


@pytest.mark.parametrize("encoding", ["br", "zstd"])
async def test_an_encoding_without_a_library_is_refused(encoding: str) -> None:
    async with serving(settings()) as (client, _, _):
        response = await client.post("/echo", content=JSON, headers={"Content-Encoding": encoding})
        assert error_of(response)["code"] == 400
        assert f"content-encoding: {encoding} is not supported" in error_of(response)["message"]


async def test_a_refused_body_is_not_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(settings(api_key=("k",))) as (client, _, _):
        calls: list[object] = []
        monkeypatch.setattr(zlib, "decompressobj", lambda *given, **more: calls.append(given))
        response = await client.post("/echo", content=BOMB, headers={"Content-Encoding": "gzip"})
        assert response.status_code == 401
        assert calls == []


async def exchange(listening: Listening, head: bytes, body: bytes = b"") -> bytes:
    """Send a head that expects `100 Continue`, then the body if that was sent; return all that was received."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
    length = max(1, len(body))
    writer.write(head + b"Host: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length)
    async with asyncio.timeout(10):
        got = await reader.readuntil(b"\r\n\r\n")
        if got.startswith(b"HTTP/1.1 100"):
            writer.write(body)
            got += await reader.readuntil(b"}")
    writer.close()
    return got


async def test_a_client_without_a_key_is_refused_before_it_sends_its_body() -> None:
    async with serving(settings(api_key=("k",))) as (_, listening, _):
        assert (await exchange(listening, b"POST /echo HTTP/1.1\r\n")).startswith(b"HTTP/1.1 401")
        got = await exchange(listening, b"POST /echo HTTP/1.1\r\nAuthorization: Bearer k\r\n", JSON)
        assert got.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent() -> None:
    async with serving(settings(max_body=5)) as (_, listening, _):
        assert (await exchange(listening, b"POST /echo HTTP/1.1\r\n", JSON)).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("unit", [b"1,", b"[],", b'"":0,', b"\\n"])
async def test_dense_json_is_refused(unit: bytes) -> None:
    async with serving(settings(), routes=[("POST", "/skipped", length_of_skipped)]) as (client, _, _):
        sent = unit * (DENSE_BODY // len(unit))
        assert (await client.post("/skipped", content=sent)).json() == len(sent)
        refused = await client.post("/skipped", content=unit * (DENSE_BODY // len(unit) + MAX_MARKS))
        assert refused.status_code == 413
        message = f"more than {MAX_MARKS} commas, colons, brackets and backslashes (also inside of texts) in"
        assert message in error_of(refused)["message"]


async def test_large_texts_are_accepted() -> None:
    text = json.dumps({"prompt": "The quick brown fox,\njumps over: the lazy dog. " * 1_000_000}).encode()
    assert len(text) > DENSE_BODY
    await refuse_costly_json(text)


async def length_of_skipped(request: web.Request) -> web.StreamResponse:
    return json_response(len(await read_skipped_json(request)))


async def test_a_large_honest_body_is_passed_over_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is forwarded without any count, and below that one pass is enough to count everything."""
    body, copied = b'{"image": "' + b"A" * 10_000_000 + b'"}', 0
    count = request_body.count_marks
    monkeypatch.setattr(request_body, "count_marks", lambda piece: fail_to_count() if piece else count(piece))
    async with serving(settings(), routes=[("POST", "/skipped", length_of_skipped)]) as (client, _, _):
        assert (await client.post("/skipped", content=body)).json() == len(body)

    class Counted(bytes):
        def count(self, *given: object) -> int:
            raise AssertionError("another pass over the whole body")

        def __getitem__(self, at: object) -> bytes:  # type: ignore[override]
            nonlocal copied
            piece = super().__getitem__(at)  # type: ignore[index]
            copied += len(piece)
            return piece

    assert check_values(Counted(body)) == 1
    assert copied == len(body)


def fail_to_count() -> int:
    raise AssertionError("a body that cannot take long was counted")


async def test_an_instance_of_a_prediction_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was counted with the request that contains it."""
    monkeypatch.setattr(request_body, "DENSE_BODY", 10)
    monkeypatch.setattr(request_body, "count_marks", lambda piece: fail_to_count())

    async def inner(request: web.Request) -> web.StreamResponse:
        request[GIVEN_BODY] = b'{"prompt": "a long one"}'
        return await length_of_skipped(request)

    async with serving(settings(), routes=[("POST", "/inner", inner)]) as (client, _, _):
        assert (await client.post("/inner")).json() == 24


async def test_a_compressed_form_is_read() -> None:
    boundary = "----x"
    form = b'------x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"b" * 100_000 + b"\r\n------x--\r\n"
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Encoding": "gzip"}
    received: list[object] = []

    async def read(request: web.Request) -> web.StreamResponse:
        received.append((await (await uncompressed(request)).post())["a"])
        return web.Response()

    async with serving(settings(), routes=[("POST", "/form", read)]) as (client, _, _):
        assert (await client.post("/form", content=gzip.compress(form), headers=kind)).status_code == 200
    assert received == ["b" * 100_000]


@pytest.mark.parametrize(
    ("size", "at_most", "is_on_a_thread"), [(TINY, TINY, False), (SMALL, SMALL, False), (SMALL, TINY, True)]
)
async def test_a_thread_is_used_only_for_what_takes_longer_than_to_start_it(
    size: int, at_most: int, is_on_a_thread: bool
) -> None:
    def work(body: bytes, number: int) -> tuple[int, int]:
        return threading.get_ident(), len(body) + number

    thread, result = await off_the_loop(work, b"x" * size, 1, at_most=at_most)
    assert (thread != threading.get_ident()) is is_on_a_thread
    assert result == size + 1


async def test_no_error_is_built_for_a_body_that_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    too_large = RequestLimits.too_large

    def build(limits: RequestLimits) -> BodyTooLarge:
        built.append(limits)
        return too_large(limits)

    monkeypatch.setattr(RequestLimits, "too_large", build)
    async with serving(settings(max_body=100)) as (client, _, _):
        assert (await client.post("/echo", content=JSON)).status_code == 200
        assert built == []
        assert (await client.post("/echo", content=b" " * 101)).status_code == 413
        assert len(built) == 1
