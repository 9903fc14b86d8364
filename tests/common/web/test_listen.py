"""Connections and addresses of router and worker: disconnects, truncated bodies, shutdown, sockets, TLS."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import make_certificate
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.web.application import application
from llama_corral.common.web.listen import Listening, listen
from llama_corral.presets.options.settings import Settings
from web_tools import serving, settings


@pytest.mark.parametrize("query", ["", "?stream=1"])
async def test_a_disconnect_cancels_the_handler(query: str) -> None:
    async with serving(settings()) as (_, listening, cancelled):
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
        writer.write(f"GET /hang{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if query:
            await reader.readuntil(b"data: 1")
        writer.close()
        await asyncio.wait_for(cancelled.wait(), 5)


async def _sent(listening: Listening, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send bytes on a raw connection, without a client library."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
    writer.write(data)
    return reader, writer


async def _asked(listening: Listening, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await _sent(listening, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def test_a_body_declared_too_large_is_refused_without_reading_it() -> None:
    async with serving(settings(max_body=1000)) as (_, listening, _):
        head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n{"
        reader, writer = await _sent(listening, head)
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_a_body_without_progress_times_out() -> None:
    async with serving(settings(timeout=1)) as (_, listening, _):
        reader, writer = await _sent(listening, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 400")
        writer.close()


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
async def test_a_body_with_a_syntax_error_is_refused_immediately(
    begin: bytes, piece: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert _except_access(caplog) == []


def _except_access(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what was logged, except the line of a request that has no traceback."""
    return [record for record in caplog.records if record.name != "corral.access" or record.exc_info]


async def test_a_syntax_error_in_the_first_packet_is_refused_in_the_requests_dialect() -> None:
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
    assert (await told("/echo"))["error"] == {"code": 400, "message": why, "type": "invalid_request_error"}
    assert (await told("/v1/messages"))["error"] == {"message": why, "type": "invalid_request_error"}
    assert await told("/api/chat") == {"error": why}


async def test_a_syntax_error_after_a_request_does_not_affect_its_answer() -> None:
    async with serving(settings()) as (_, listening, _):
        reader, writer = await _sent(listening, b"GET /slow HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n")
        await reader.readuntil(b"100 Continue\r\n\r\n")
        writer.write(b"nonsense\r\n\r\n")
        answer, refusal = (await reader.read()).split(b"HTTP/1.0 400 ")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b'{"done":true}')
        assert b"the request cannot be read: " in refusal


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00 hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\na b: c\r\n\r\n"]
)
async def test_invalid_http_is_refused_without_a_stack_trace(nonsense: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(settings()) as (_, listening, _):
        reader, writer = await _sent(listening, nonsense)
        assert (await reader.read()).startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        writer.close()
    assert _except_access(caplog) == []


async def test_stop_lets_running_requests_finish_and_accepts_no_new_ones() -> None:
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


async def test_stop_aborts_requests_after_the_grace_period() -> None:
    async with serving(settings(), grace=0.05) as (_, listening, cancelled):
        reader, writer = await _asked(listening, "/hang?stream=1")
        await reader.readuntil(b"data: 1")
    assert cancelled.is_set()
    assert b"0\r\n\r\n" not in await reader.read(), "an aborted stream must not look complete"
    writer.close()


# -- listening ---------------------------------------------------------------------------------------------------------


async def _once(given: Settings) -> Listening:
    async with listen(application(given), given) as listening:
        return listening


async def test_addresses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "corral.http")
    path = tmp_path / "x.sock"

    async with serving(settings(host=("127.0.0.1", str(path)))) as (client, listening, _):
        assert (await client.get("/health")).status_code == 200
        assert listening.addresses == (f"http://127.0.0.1:{listening.port}", f"unix://{path}")
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as other:
            assert (await other.get("http://localhost/health")).status_code == 200
        assert f"listening on http://127.0.0.1:{listening.port}" in caplog.text
    assert not path.exists()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here")
async def test_two_families_share_a_port() -> None:
    port = (await _once(settings())).port
    for hosts in (("0.0.0.0", "::"), ("127.0.0.1", "::1")):
        async with serving(settings(host=hosts, port=port)) as (_, listening, _):
            assert len(listening.addresses) == 2
            for host in ("127.0.0.1", "[::1]"):
                async with httpx.AsyncClient(trust_env=False) as client:
                    assert (await client.get(f"http://{host}:{port}/health")).status_code == 200


async def test_all_addresses_of_a_name_are_bound() -> None:
    port = (await _once(settings())).port
    async with serving(settings(host=("localhost",), port=port)) as (client, _, _):
        assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200


async def test_socket_file_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    given = settings(host=(str(path),))
    async with serving(given) as (client, _, _):
        assert (await client.get("/health")).status_code == 200
        with pytest.raises(ConfigError, match="already in use"):
            await _once(given)
        assert (await client.get("/health")).status_code == 200


async def test_an_address_that_cannot_be_bound_is_a_one_line_error(tmp_path: Path) -> None:
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


async def test_reuse_port_allows_sharing_a_port() -> None:
    async with serving(settings(reuse_port=True)) as (_, listening, _):
        assert (await _once(settings(reuse_port=True, port=listening.port))).port == listening.port


@pytest.mark.parametrize(
    ("given", "is_warned"),
    [
        ({"host": ("0.0.0.0",)}, True),
        ({"host": ("::",)}, True),
        ({"host": ("0.0.0.0",), "api_key": ("k",)}, False),
        ({"host": ("127.0.0.2",)}, False),
    ],
)
async def test_a_server_for_other_machines_without_keys_warns(
    given: dict[str, Any], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(settings(**given)):
        assert ("without an API key" in caplog.text) is is_warned


async def test_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    given = settings(ssl_key_file=str(certificate.key), ssl_cert_file=str(certificate.chain))
    async with listen(application(given), given) as listening:
        assert listening.addresses[0].startswith("https://")
        trust = ssl.create_default_context(cafile=str(certificate.authority))
        async with httpx.AsyncClient(verify=trust, trust_env=False) as client:
            assert (await client.get(listening.addresses[0] + "/x")).status_code == 404


@pytest.mark.skipif(os.name != "posix", reason="pipes have no paths")
async def test_tls_files_may_be_pipes(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    pipes = [_pipe_with(path.read_bytes()) for path in (certificate.key, certificate.chain)]
    key, chain = (f"/dev/fd/{number}" for number in pipes)
    try:
        assert (await _once(settings(ssl_key_file=key, ssl_cert_file=chain))).addresses[0].startswith("https://")
        with pytest.raises(ConfigError) as refused:  # they are empty now
            await _once(settings(ssl_key_file=key, ssl_cert_file=chain))
        assert "one of them is not a PEM file of its kind" in str(refused.value)
        with pytest.raises(ConfigError, match=r"--ssl-key-file none\.pem: no such file"):
            await _once(settings(ssl_key_file="none.pem", ssl_cert_file=str(certificate.chain)))
    finally:
        for number in pipes:
            os.close(number)


def _pipe_with(data: bytes) -> int:
    """Return the end of a pipe from which `data` can be read once."""
    reading, writing = os.pipe()
    with open(writing, "wb") as file:
        file.write(data)
    return reading


# -- JSON and log ------------------------------------------------------------------------------------------------------
