"""The HTTP manners of router and worker, on a small application with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from aiohttp import web
from llama_corral.presets import errors, logs
from llama_corral.presets.access import read_api_keys
from llama_corral.presets.encoding import encode_json
from llama_corral.presets.errors import ApiError, ConfigError
from llama_corral.presets.listen import Listening, listen
from llama_corral.presets.pages import page_routes
from llama_corral.presets.settings import Settings
from llama_corral.presets.web import (
    add_routes,
    application,
    error_response,
    event_stream,
    json_response,
    read_object,
)

PAGE = "<!doctype html><title>x</title>"


def settings(**given: Any) -> Settings:
    return Settings(**{"port": 0, **given})


@contextlib.asynccontextmanager
async def serving(
    given: Settings, is_ready: Callable[[], bool] = lambda: True, grace: float = 3.0
) -> AsyncIterator[tuple[httpx.AsyncClient, Listening, asyncio.Event]]:
    """The application under test, a client for it, and an event that is set when a handler was cancelled."""
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

    app = application(given, is_ready=is_ready)
    add_routes(app, given, [("GET", "/health", ok), ("POST", "/echo", echo), ("GET", "/fail/{how}", fail)])
    add_routes(
        app,
        given,
        [("GET", "/hang", hang), ("GET", "/late", break_late), ("GET", "/slow", slow), *page_routes(given, PAGE)],
    )
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


def test_every_error_has_a_status_a_type_and_an_envelope() -> None:
    def leaves(kind: type[ApiError]) -> list[type[ApiError]]:
        return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]

    for kind in leaves(ApiError):
        error = kind(9, 8) if kind is errors.ContextExceeded else kind("why")
        response = error_response(error)
        assert isinstance(response.body, bytes)
        body = json.loads(response.body)["error"]
        assert (response.status, body["type"]) == (kind.status, kind.type)
        assert 400 <= kind.status < 600
        assert body["message"]
        assert response.headers.get("Retry-After") == (str(kind.retry_after) if kind.retry_after else None)
        assert kind.status not in (408, 409), "clients repeat these, whatever the answer says"
        assert kind.status != 429 or 0 < (kind.retry_after or 0) <= 120
        is_hopeless = kind.status >= 500 and kind.retry_after is None
        assert response.headers.get("X-Should-Retry") == ("false" if is_hopeless else None)


def test_bad_requests_get_the_envelope() -> None:
    async def check() -> None:
        async with serving(settings(max_body=1000)) as (client, _, _):
            for method, path in (("GET", "/nothing"), ("GET", "/echo"), ("DELETE", "/health"), ("POST", "/")):
                error = error_of(await client.request(method, path))
                assert error == {"code": 404, "message": "File Not Found", "type": "not_found_error"}
            for body in (b"{", b"nonsense", b'{"a": "\xff"}', b'{"a": ' + b"[" * 900, b"", b"[]", b"7"):
                response = await client.post("/echo", content=body)
                assert error_of(response)["type"] == "invalid_request_error", body
                assert response.status_code == 400
            response = await client.post("/echo", content=b"x" * 1001)
            assert response.status_code == 413
            assert "--max-body" in error_of(response)["message"]
            assert (await client.post("/echo", content=b'{"a": 1}')).json() == {"a": 1}

    uvloop.run(check())


def test_byte_of_the_mistake_is_named() -> None:
    async def check() -> None:
        async with serving(settings()) as (client, _, _):
            assert "(byte 10)" in error_of(await client.post("/echo", content=b'{"a": tru}'))["message"]

    uvloop.run(check())


def test_chunked_compressed_and_mislabelled_bodies_are_read() -> None:
    import gzip

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"a"'
        yield b": 1}"

    async def check() -> None:
        async with serving(settings()) as (client, _, _):
            zipped, form = {"Content-Encoding": "gzip"}, {"Content-Type": "application/x-www-form-urlencoded"}
            answers = [
                await client.post("/echo", content=pieces()),
                await client.post("/echo", content=gzip.compress(b'{"a": 1}'), headers=zipped),
                await client.post("/echo", content=b'{"a": 1}', headers=form),
                await client.post("/echo", content=b'{"a": 1}', headers={"Expect": "100-continue"}),
            ]
            assert [answer.json() for answer in answers] == [{"a": 1}] * 4

    uvloop.run(check())


def test_unexpected_error_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with serving(settings()) as (client, _, _):
            error = error_of(await client.get("/fail/bug"))
            assert error["type"] == "server_error"
            assert "secret" not in error["message"]
            response = await client.get("/fail/full")
            assert error_of(response)["type"] == "unavailable_error"
            assert response.headers["retry-after"] == "1"

    uvloop.run(check())
    assert "unexpected error in GET /fail/bug" in caplog.text


def test_error_after_the_status_went_out_cuts_the_answer() -> None:
    async def check() -> None:
        async with serving(settings()) as (client, _, _):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/late")

    uvloop.run(check())


def test_before_it_is_ready_only_the_page_is_served() -> None:
    ready = False

    async def check() -> None:
        nonlocal ready
        async with serving(settings(api_key=("k",)), is_ready=lambda: ready) as (client, _, _):
            for path in ("/health", "/echo", "/nothing"):
                error = error_of(await client.get(path))
                assert error == {"code": 503, "message": "Loading model", "type": "unavailable_error"}
            assert (await client.get("/")).status_code == 200
            assert (await client.options("/echo")).status_code == 200
            ready = True
            assert (await client.get("/health")).json() == {"status": "ok"}

    uvloop.run(check())


def _in_bytes(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers.items()]


def test_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-file\n\nönly-ascii-not\n")

    async def check() -> None:
        async with serving(settings(api_key=("one", "two"), api_key_file=str(file))) as (client, _, _):
            good = [
                {"Authorization": "Bearer one"},
                {"Authorization": "bearer two"},
                {"Authorization": "from-file"},
                {"X-Api-Key": "two"},
                {"X-Api-Key": "Bearer two"},
                {"X-Api-Key": "one", "Authorization": ""},
                {"Authorization": "Bearer önly-ascii-not"},
            ]
            bad = [
                {},
                {"Authorization": "Bearer"},
                {"Authorization": "Bearer oneone"},
                {"Authorization": "Bearer wrong", "X-Api-Key": "one"},
                {"Authorization": "Bearer \udcff"},
            ]
            for headers in good:
                response = await client.post("/echo", content=b"{}", headers=_in_bytes(headers))
                assert response.status_code == 200, headers
            for headers in bad:
                response = await client.post("/echo", content=b"{}", headers=_in_bytes(headers))
                assert error_of(response)["type"] == "authentication_error", headers
                assert response.status_code == 401
            assert (await client.get("/nothing")).status_code == 401
            for path in ("/health", "/", "/index.html", "/sw.js", "/manifest.webmanifest", "/_app/version.json"):
                assert (await client.get(path)).status_code == 200, path

    uvloop.run(check())
    assert "one" not in caplog.text.replace("unauthorized", "")


def test_key_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="/nowhere"):
        read_api_keys(settings(api_key_file="/nowhere"))


LOCAL = ("http://localhost", "http://localhost:1", "https://127.0.0.1:3000", "http://[::1]", "http://[::1]:80")
FOREIGN = ("http://evil.com", "http://notlocalhost", "http://localhost.evil.com", "null", "http://[", "")


@pytest.mark.parametrize(
    ("given", "origin", "allowed"),
    [
        ({}, "http://a.b", "http://a.b"),
        ({}, None, None),
        ({"cors_credentials": False}, "http://a.b", "*"),
        ({"cors_origins": "http://c.d"}, "http://a.b", "http://c.d"),
        *(({"cors_origins": "localhost"}, origin, origin) for origin in LOCAL),
        *(({"cors_origins": "localhost"}, origin, None) for origin in FOREIGN),
        ({"tools": ("all",)}, "http://evil.com", None),
        ({"tools": ("all",)}, "http://localhost:8080", "http://localhost:8080"),
        ({"tools": ("all",), "cors_origins": "*"}, "http://evil.com", "http://evil.com"),
    ],
)
def test_origin_stands_on_every_answer(given: dict[str, Any], origin: str | None, allowed: str | None) -> None:
    async def check() -> None:
        headers = {} if origin is None else {"Origin": origin}
        async with serving(settings(**given, api_key=("k",))) as (client, _, _):
            for method, path in (("GET", "/health"), ("GET", "/echo"), ("OPTIONS", "/any/path"), ("GET", "/")):
                response = await client.request(method, path, headers=headers)
                assert response.headers.get("access-control-allow-origin") == allowed
                if method != "OPTIONS":
                    credentials = "true" if allowed and allowed == origin else None
                    assert response.headers.get("access-control-allow-credentials") == credentials
                assert response.headers["server"] == "llama.cpp"

    uvloop.run(check())


def test_preflight() -> None:
    async def check() -> None:
        async with serving(settings(api_key=("k",))) as (client, _, _):
            response = await client.options("/v1/anything", headers={"Origin": "http://a"})
            assert (response.status_code, response.content) == (200, b"")
            assert response.headers["content-type"] == "text/html"
            assert response.headers["access-control-allow-credentials"] == "true"
            assert response.headers["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
            assert response.headers["access-control-allow-headers"] == "*"

    uvloop.run(check())


@pytest.mark.parametrize(
    "wanted", [b"authorization", b"x-stainless-lang, X-\xe9\xff,,cookie", b"x-" + b"a" * 20_000, b""]
)
def test_pages_elsewhere_with_credentials_and_odd_headers(wanted: bytes) -> None:
    async def check() -> None:
        given = settings(api_key=("k",), cors_headers="Authorization, X-Odd")
        async with serving(given) as (client, _, _):
            asks = [(b"Origin", b"http://a.b"), (b"Access-Control-Request-Headers", wanted), (b"Cookie", b"a=\xff")]
            asks.append((b"Access-Control-Request-Method", b"POST"))
            preflight = await client.options("/echo", headers=asks)
            assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (
                200,
                "Authorization, X-Odd",
            )
            key = [*asks, (b"Authorization", b"Bearer k")]
            answers = [preflight, await client.post("/echo", content=b"{}", headers=key)]
            answers.append(await client.post("/echo", content=b"{}", headers=asks))
            answers.append(await client.post("/echo", content=b"{", headers=key))
            answers.append(await client.get("/nowhere", headers=key))
            answers.append(await client.get("/fail/full", headers=key))
            assert [answer.status_code for answer in answers] == [200, 200, 401, 400, 404, 503]
            for answer in answers:
                assert answer.headers.get_list("access-control-allow-origin") == ["http://a.b"]
                assert answer.headers.get_list("access-control-allow-credentials") == ["true"]
                assert answer.headers["vary"] == "Origin"

    uvloop.run(check())


def test_prefix() -> None:
    async def check() -> None:
        async with serving(settings(api_prefix="/llm", api_key=("k",))) as (client, _, _):
            assert (await client.get("/llm/health")).status_code == 200
            assert (await client.get("/llm/")).text == PAGE
            assert (await client.post("/llm/echo", content=b"{}", headers={"X-Api-Key": "k"})).status_code == 200
            assert (await client.post("/echo", content=b"{}", headers={"X-Api-Key": "k"})).status_code == 404

    uvloop.run(check())


def test_page_and_its_absence(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(settings()) as (client, _, _):
            response = await client.get("/")
            assert response.text == PAGE
            assert response.headers["cache-control"] == "no-cache"
            assert (await client.head("/")).status_code == 200
        async with serving(settings(ui=False)) as (client, _, _):
            assert (await client.get("/")).status_code == 404
            assert (await client.head("/")).status_code == 200
            assert "unregister" in (await client.get("/sw.js")).text

    uvloop.run(check())


def test_folder_instead_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    (folder / "index.html").write_text("home")
    (folder / "sub" / "index.html").write_text("below")
    (folder / "a b.txt").write_text("text")
    (tmp_path / "secret").write_text("no")
    (folder / "link").symlink_to(tmp_path / "secret")

    async def check() -> None:
        async with serving(settings(path=str(folder))) as (client, _, _):
            assert (await client.get("/")).text == "home"
            assert (await client.get("/sub/")).text == "below"
            assert (await client.get("/a%20b.txt")).text == "text"
            assert "unregister" in (await client.get("/sw.js")).text
            assert (await client.get("/health")).json() == {"status": "ok"}
            for path in ("/../secret", "/%2e%2e/secret", "/..%2fsecret", "/link", "/none", "/%00", "/" + "x" * 5000):
                assert (await client.get(path)).status_code == 404, path

    uvloop.run(check())
    with pytest.raises(ConfigError, match="no such directory"):
        page_routes(settings(path=str(tmp_path / "none")), PAGE)


@pytest.mark.parametrize("query", ["", "?stream=1"])
def test_client_that_leaves_cancels_its_handler(query: str) -> None:
    async def check() -> None:
        async with serving(settings()) as (_, listening, cancelled):
            reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
            writer.write(f"GET /hang{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            if query:
                await reader.readuntil(b"data: 1")
            writer.close()
            await asyncio.wait_for(cancelled.wait(), 5)

    uvloop.run(check())


async def _sent(listening: Listening, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """On a connection that no client library looks after."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
    writer.write(data)
    return reader, writer


async def _asked(listening: Listening, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await _sent(listening, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_body_that_is_announced_too_large_is_not_waited_for() -> None:
    async def check() -> None:
        async with serving(settings(max_body=1000)) as (_, listening, _):
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n{"
            reader, writer = await _sent(listening, head)
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413")
            writer.close()

    uvloop.run(check())


def test_body_that_stops_coming_is_given_up() -> None:
    async def check() -> None:
        async with serving(settings(timeout=1)) as (_, listening, _):
            reader, writer = await _sent(listening, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 400")
            writer.close()

    uvloop.run(check())


PIECES = b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        (b"zz\r\n", "Invalid character in chunk size"),
        (b"3\r\n{}}}}}\r\n", "Expected LF after chunk data"),
        (b"ffffffffffffffffffff\r\n", "Chunk size overflow"),
        (b"0\r\n\0: x\r\n\r\n", "Invalid header token"),
    ],
)
@pytest.mark.parametrize("begin", [b"", b'5\r\n{"a":\r\n'])
def test_a_body_that_breaks_in_its_midst_is_refused_at_once(
    begin: bytes, piece: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        async with serving(settings()) as (client, listening, _):
            reader, writer = await _sent(listening, b"POST /echo HTTP/1.1\r\nHost: x\r\n" + PIECES)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(begin + piece + b"?" * 10)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            assert head.startswith(b"HTTP/1.1 400")
            message = f"the request body cannot be read: {why}"
            assert json.loads(body)["error"] == {"code": 400, "message": message, "type": "invalid_request_error"}
            assert (await client.post("/echo", json={})).json() == {}

    uvloop.run(check())
    assert caplog.text == ""


def test_what_comes_in_one_piece_with_its_mistake_is_refused_in_its_dialect() -> None:
    async def told(path: str) -> dict[str, Any]:
        async with serving(settings()) as (_, listening, _):
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            reader, writer = await _sent(listening, head.encode() + b"zz\r\n")
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.0 400")
            body: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
            return body

    why = "the request cannot be read: Invalid character in chunk size"
    assert uvloop.run(told("/echo"))["error"] == {"code": 400, "message": why, "type": "invalid_request_error"}
    assert uvloop.run(told("/v1/messages"))["error"] == {"message": why, "type": "invalid_request_error"}
    assert uvloop.run(told("/api/chat")) == {"error": why}


def test_a_mistake_behind_a_request_does_not_touch_its_answer() -> None:
    async def check() -> None:
        async with serving(settings()) as (_, listening, _):
            reader, writer = await _sent(listening, b"GET /slow HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n")
            await reader.readuntil(b"100 Continue\r\n\r\n")
            writer.write(b"nonsense\r\n\r\n")
            answer, refusal = (await reader.read()).split(b"HTTP/1.0 400 ")
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b'{"done":true}')
            assert b"the request cannot be read: " in refusal

    uvloop.run(check())


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00 hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\na b: c\r\n\r\n"]
)
def test_what_is_no_http_is_refused_without_noise(nonsense: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with serving(settings()) as (_, listening, _):
            reader, writer = await _sent(listening, nonsense)
            assert (await reader.read()).startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
            writer.close()

    uvloop.run(check())
    assert caplog.text == ""


def test_stop_lets_running_requests_finish_and_takes_no_new_ones() -> None:
    async def check() -> None:
        async with serving(settings()) as (_, listening, _):
            idle, idle_writer = await _asked(listening, "/health")
            await idle.readuntil(b"}")
            reader, writer = await _asked(listening, "/slow")
            await asyncio.sleep(0.1)
            leaving = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - leaving < 2
        assert b'{"done":true}' in await reader.read()
        assert await idle.read() == b""
        writer.close()
        idle_writer.close()
        with pytest.raises(ConnectionError):
            await _asked(listening, "/health")

    uvloop.run(check())


def test_stop_cuts_what_outlasts_the_grace() -> None:
    async def check() -> None:
        async with serving(settings(), grace=0.05) as (_, listening, cancelled):
            reader, writer = await _asked(listening, "/hang?stream=1")
            await reader.readuntil(b"data: 1")
        assert cancelled.is_set()
        assert b"0\r\n\r\n" not in await reader.read(), "a cut stream must not look complete"
        writer.close()

    uvloop.run(check())


# -- listening ---------------------------------------------------------------------------------------------------------


async def _once(given: Settings) -> Listening:
    async with listen(application(given), given) as listening:
        return listening


def test_addresses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "corral.http")
    path = tmp_path / "x.sock"

    async def check() -> None:
        async with serving(settings(host=("127.0.0.1", str(path)))) as (client, listening, _):
            assert (await client.get("/health")).status_code == 200
            assert listening.addresses == (f"http://127.0.0.1:{listening.port}", f"unix://{path}")
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as other:
                assert (await other.get("http://localhost/health")).status_code == 200
            assert f"listening on http://127.0.0.1:{listening.port}" in caplog.text
        assert not path.exists()

    uvloop.run(check())


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here")
def test_two_families_share_a_port() -> None:
    async def check() -> None:
        port = (await _once(settings())).port
        for hosts in (("0.0.0.0", "::"), ("127.0.0.1", "::1")):
            async with serving(settings(host=hosts, port=port)) as (_, listening, _):
                assert len(listening.addresses) == 2
                for host in ("127.0.0.1", "[::1]"):
                    async with httpx.AsyncClient(trust_env=False) as client:
                        assert (await client.get(f"http://{host}:{port}/health")).status_code == 200

    uvloop.run(check())


def test_name_stands_for_all_its_addresses() -> None:
    async def check() -> None:
        port = (await _once(settings())).port
        async with serving(settings(host=("localhost",), port=port)) as (client, _, _):
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200

    uvloop.run(check())


def test_socket_file_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def check() -> None:
        given = settings(host=(str(path),))
        async with serving(given) as (client, _, _):
            assert (await client.get("/health")).status_code == 200
            with pytest.raises(ConfigError, match="already in use"):
                await _once(given)
            assert (await client.get("/health")).status_code == 200

    uvloop.run(check())


def test_address_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(settings()) as (_, listening, _):
            cases: list[tuple[dict[str, Any], str]] = [
                ({"port": listening.port}, f"127.0.0.1:{listening.port} is already in use"),
                ({"host": ("192.0.2.1",)}, "192.0.2.1"),
                ({"host": ("no.such.host.invalid",)}, "no.such.host.invalid"),
                ({"host": ("127.0.0.1", "::1")}, "--port 0"),
                ({"host": (f"{tmp_path}/none/x.sock",)}, "x.sock"),
                ({"host": (f"{tmp_path}/{'x' * 200}.sock",)}, "too long"),
                ({"ssl_key_file": "key.pem"}, "--ssl-cert-file"),
                ({"ssl_key_file": "none.pem", "ssl_cert_file": "none.pem"}, "none.pem"),
            ]
            for given, said in cases:
                with pytest.raises(ConfigError) as raised:
                    await _once(settings(**given))
                assert said in str(raised.value)
                assert "\n" not in str(raised.value)

    uvloop.run(check())


def test_port_can_be_shared_when_asked_for() -> None:
    async def check() -> None:
        async with serving(settings(reuse_port=True)) as (_, listening, _):
            assert (await _once(settings(reuse_port=True, port=listening.port))).port == listening.port

    uvloop.run(check())


def test_tls(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(cert),
        *subject,
    ]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")

    async def check() -> None:
        given = settings(ssl_key_file=str(key), ssl_cert_file=str(cert))
        async with listen(application(given), given) as listening:
            assert listening.addresses[0].startswith("https://")
            trust = ssl.create_default_context(cafile=str(cert))
            async with httpx.AsyncClient(verify=trust, trust_env=False) as client:
                assert (await client.get(listening.addresses[0] + "/x")).status_code == 404

    uvloop.run(check())


# -- JSON and log ------------------------------------------------------------------------------------------------------


def test_any_text_can_be_encoded() -> None:
    shown = json.loads(encode_json({"a\ud800": ["\udfff", ("x", 1.5, None)], "n": float("nan")}))
    assert shown == {"a\ufffd": ["\ufffd", ["x", 1.5, None]], "n": None}


@pytest.fixture
def quiet_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("corral").level)
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, level, ours = before
    root.setLevel(level)
    logging.getLogger("corral").setLevel(ours)


@pytest.mark.usefixtures("quiet_logging")
def test_log_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def lines(**given: Any) -> tuple[str, str]:
        logs.set_up(Settings(**given))
        log = logging.getLogger("corral.router")
        log.debug("d")
        log.info("i")
        log.warning("w")
        logging.getLogger("somebody").info("theirs")
        out, err = capsys.readouterr()
        return out, err

    assert lines()[1].splitlines()[1:] == ["warning: w"]
    assert lines(log_verbosity=1) == ("", "")
    assert lines(log_disable=True) == ("", "")
    assert "d" in lines(log_verbosity=4)[1].splitlines()
    assert "theirs" in lines(log_verbosity=5)[1]
    assert "W router: w" in lines(log_prefix=True)[1]
    assert "\033[33m" in lines(log_colors="on")[1]
    assert "\033" not in lines()[1]
    stamped = lines(log_timestamps=True)[1].splitlines()[-1]
    assert datetime.time.fromisoformat(stamped.split(" ")[0])
    out = lines(log_jsonl=True, log_file=str(tmp_path / "log"))[0]
    assert [json.loads(line)["level"] for line in out.splitlines()] == ["info", "warning"]
    assert (tmp_path / "log").read_text().count("\n") == 2
    with pytest.raises(ConfigError, match="nowhere"):
        lines(log_file="/nowhere/log")
