"""The common HTTP behaviour of router and worker, on a small application with real sockets."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_corral.common.base import errors, logs
from llama_corral.common.base.errors import ApiError, ConfigError
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.application import application, error_response
from llama_corral.common.web.auth import ApiKeys, read_api_keys
from llama_corral.common.web.pages import add_pages
from llama_corral.presets.options.settings import Settings
from web_tools import PAGE, error_of, serving, settings


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
        assert kind.status not in (408, 409), "clients retry these, whatever the headers say"
        assert kind.status != 429 or 0 < (kind.retry_after or 0) <= 120
        is_hopeless = kind.status >= 500 and kind.retry_after is None
        assert response.headers.get("X-Should-Retry") == ("false" if is_hopeless else None)


async def test_bad_requests_get_the_envelope() -> None:
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


async def test_json_errors_name_the_byte_position() -> None:
    async with serving(settings()) as (client, _, _):
        assert "(byte 10)" in error_of(await client.post("/echo", content=b'{"a": tru}'))["message"]


async def test_chunked_compressed_and_mislabelled_bodies_are_read() -> None:
    import gzip

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"a"'
        yield b": 1}"

    async with serving(settings()) as (client, _, _):
        zipped, form = {"Content-Encoding": "gzip"}, {"Content-Type": "application/x-www-form-urlencoded"}
        answers = [
            await client.post("/echo", content=pieces()),
            await client.post("/echo", content=gzip.compress(b'{"a": 1}'), headers=zipped),
            await client.post("/echo", content=b'{"a": 1}', headers=form),
            await client.post("/echo", content=b'{"a": 1}', headers={"Expect": "100-continue"}),
        ]
        assert [answer.json() for answer in answers] == [{"a": 1}] * 4


async def test_unexpected_error_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(settings()) as (client, _, _):
        error = error_of(await client.get("/fail/bug"))
        assert error["type"] == "server_error"
        assert "secret" not in error["message"]
        response = await client.get("/fail/full")
        assert error_of(response)["type"] == "unavailable_error"
        assert response.headers["retry-after"] == "1"
    assert "unexpected error in GET /fail/bug" in caplog.text


async def test_error_after_the_status_closes_the_connection() -> None:
    async with serving(settings()) as (client, _, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/late")


async def test_only_the_page_is_served_before_the_server_is_ready() -> None:
    ready = False

    async with serving(settings(api_key=("k",)), is_ready=lambda: ready) as (client, _, _):
        for path in ("/health", "/echo", "/nothing"):
            error = error_of(await client.get(path))
            assert error == {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        assert (await client.get("/")).status_code == 200
        assert (await client.options("/echo")).status_code == 200
        ready = True
        assert (await client.get("/health")).json() == {"status": "ok"}


def _in_bytes(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers.items()]


async def test_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-file\n\nönly-ascii-not\n")

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
    assert "one" not in caplog.text.replace("unauthorized", "")


def test_missing_key_file() -> None:
    with pytest.raises(ConfigError, match="/nowhere"):
        read_api_keys(settings(api_key_file="/nowhere"), may_wait=True)


async def test_keys_that_are_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("")
    keys = ApiKeys(settings(api_key_file=str(file)))

    async def statuses(client: httpx.AsyncClient) -> list[int]:
        given = ({}, {"X-Api-Key": "one"}, {"X-Api-Key": "two"})
        return [(await client.post("/echo", content=b"{}", headers=headers)).status_code for headers in given]

    async with serving(settings(), api_keys=keys) as (client, _, _):
        assert await statuses(client) == [200, 200, 200]
        for text, expected in (("one\n", [401, 200, 401]), ("two\n", [401, 401, 200]), ("# none\n", [401, 401, 200])):
            file.write_text(text)
            keys.read_again()
            assert await statuses(client) == expected
        file.unlink()
        keys.read_again()
        assert await statuses(client) == [401, 401, 200]
    assert caplog.text.count("the old API keys are kept") == 2
    assert "two" not in caplog.text


LOCAL = ("http://localhost", "http://localhost:1", "https://127.0.0.1:3000", "http://[::1]", "http://[::1]:80")
LISTED = ("http://c.d", "https://e.f:8443")
FOREIGN = ("http://evil.com", "http://notlocalhost", "http://localhost.evil.com", "null", "http://[", "")


@pytest.mark.parametrize(
    ("given", "origin", "allowed"),
    [
        ({}, "http://a.b", "http://a.b"),
        ({}, None, None),
        ({"cors_credentials": False}, "http://a.b", "*"),
        ({"cors_origins": "http://c.d"}, "http://a.b", None),
        ({"cors_origins": "http://c.d"}, None, None),
        *(({"cors_origins": "http://c.d , https://E.f:8443/,,"}, origin, origin) for origin in LISTED),
        *(({"cors_origins": "http://c.d , https://E.f:8443/,,"}, origin, None) for origin in (*FOREIGN, *LOCAL)),
        *(({"cors_origins": "https://c.d, localhost"}, origin, origin) for origin in (*LOCAL, "https://c.d")),
        ({"cors_origins": "http://c.d, *"}, "http://evil.com", "http://evil.com"),
        *(({"cors_origins": "localhost"}, origin, origin) for origin in LOCAL),
        *(({"cors_origins": "localhost"}, origin, None) for origin in FOREIGN),
        ({"tools": ("all",)}, "http://evil.com", None),
        ({"tools": ("all",)}, "http://localhost:8080", "http://localhost:8080"),
        ({"tools": ("all",), "cors_origins": "*"}, "http://evil.com", "http://evil.com"),
    ],
)
async def test_every_response_has_the_origin_header(
    given: dict[str, Any], origin: str | None, allowed: str | None
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    async with serving(settings(**given, api_key=("k",))) as (client, _, _):
        for method, path in (("GET", "/health"), ("GET", "/echo"), ("OPTIONS", "/any/path"), ("GET", "/")):
            response = await client.request(method, path, headers=headers)
            assert response.headers.get("access-control-allow-origin") == allowed
            assert ("Origin" in response.headers.get("vary", "")) == (allowed != "*"), "caches keep one for each origin"
            if method != "OPTIONS":
                credentials = "true" if allowed and allowed == origin else None
                assert response.headers.get("access-control-allow-credentials") == credentials
            assert response.headers["server"] == "llama.cpp"


async def test_preflight() -> None:
    async with serving(settings(api_key=("k",))) as (client, _, _):
        response = await client.options("/v1/anything", headers={"Origin": "http://a"})
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"] == "text/html"
        assert response.headers["access-control-allow-credentials"] == "true"
        assert response.headers["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
        assert response.headers["access-control-allow-headers"] == "*"


@pytest.mark.parametrize("origin", ["http://c", "null", None])
async def test_a_preflight_of_another_origin_learns_nothing(origin: str | None) -> None:
    async with serving(settings(cors_origins="http://a, http://b")) as (client, _, _):
        response = await client.options("/v1/anything", headers={"Origin": origin} if origin else {})
        assert response.status_code == 200
        assert [name for name in response.headers if name.startswith("access-control")] == []
        assert response.headers["vary"] == "Origin"
        allowed = await client.options("/v1/anything", headers={"Origin": "http://b"})
        assert allowed.headers["access-control-allow-origin"] == "http://b"
        assert "access-control-allow-methods" in allowed.headers


@pytest.mark.parametrize(
    "wanted", [b"authorization", b"x-stainless-lang, X-\xe9\xff,,cookie", b"x-" + b"a" * 20_000, b""]
)
async def test_foreign_pages_with_credentials_and_unusual_headers(wanted: bytes) -> None:
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


async def test_prefix() -> None:
    async with serving(settings(api_prefix="/llm", api_key=("k",))) as (client, _, _):
        assert (await client.get("/llm/health")).status_code == 200
        assert (await client.get("/llm/")).text == PAGE
        assert (await client.post("/llm/echo", content=b"{}", headers={"X-Api-Key": "k"})).status_code == 200
        assert (await client.post("/echo", content=b"{}", headers={"X-Api-Key": "k"})).status_code == 404


async def test_page_and_no_page(tmp_path: Path) -> None:
    async with serving(settings()) as (client, _, _):
        response = await client.get("/")
        assert response.text == PAGE
        assert response.headers["cache-control"] == "no-cache"
        assert (await client.head("/")).status_code == 200
    async with serving(settings(ui=False)) as (client, _, _):
        assert (await client.get("/")).status_code == 404
        assert (await client.head("/")).status_code == 200
        assert "unregister" in (await client.get("/sw.js")).text


async def test_folder_instead_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    (folder / "index.html").write_text("home")
    (folder / "sub" / "index.html").write_text("below")
    (folder / "a b.txt").write_text("text")
    (tmp_path / "secret").write_text("no")
    (folder / "link").symlink_to(tmp_path / "secret")

    async with serving(settings(path=str(folder))) as (client, _, _):
        assert (await client.get("/")).text == "home"
        assert (await client.get("/sub/")).text == "below"
        assert (await client.get("/a%20b.txt")).text == "text"
        assert "unregister" in (await client.get("/sw.js")).text
        assert (await client.get("/health")).json() == {"status": "ok"}
        for path in ("/../secret", "/%2e%2e/secret", "/..%2fsecret", "/link", "/none", "/%00", "/" + "x" * 5000):
            assert (await client.get(path)).status_code == 404, path
    with pytest.raises(ConfigError, match="no such directory"):
        add_pages(application(settings()), settings(path=str(tmp_path / "none")), PAGE)


async def test_files_of_a_folder_with_a_page_are_public_as_the_page_is(tmp_path: Path) -> None:
    (tmp_path / "_app").mkdir()
    (tmp_path / "index.html").write_text("home")
    (tmp_path / "_app" / "start.js").write_text("run()")
    given = settings(path=str(tmp_path), api_key=("k",))
    async with serving(given, is_ready=lambda: False) as (client, _, _):
        assert (await client.get("/")).text == "home"
        assert (await client.get("/_app/start.js")).text == "run()", "a browser cannot send a key before the page runs"
    async with serving(given) as (client, _, _):
        assert (await client.get("/_app/start.js")).text == "run()"
        assert (await client.head("/_app/start.js")).status_code == 200
        assert (await client.get("/_app/none.js")).status_code == 404
        assert (await client.post("/_app/start.js")).status_code == 401
        assert (await client.get("/fail/x")).status_code == 401, "routes of the API need the key"


async def test_hidden_files_of_a_page_need_the_key(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "index.html").write_text("home")
    for name in (".env", ".git/config"):
        (tmp_path / name).write_text("secret")
    async with serving(settings(path=str(tmp_path), api_key=("k",))) as (client, _, _):
        for path in ("/.env", "/%2eenv", "/.git/config"):
            assert (await client.get(path)).status_code == 401, path
        assert (await client.get("/.env", headers={"X-Api-Key": "k"})).text == "secret"


async def test_files_of_a_folder_without_a_page_need_the_key(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    async with serving(settings(path=str(tmp_path), api_key=("k",))) as (client, _, _):
        assert (await client.get("/notes.txt")).status_code == 401
        assert (await client.get("/notes.txt", headers={"X-Api-Key": "k"})).text == "text"


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
        logs.set_up(Settings.of(**{"log_timestamps": False, **given}))
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
    assert datetime.datetime.fromisoformat(" ".join(stamped.split(" ")[:2])).date() == datetime.date.today()
    assert Settings.of().log.log_timestamps
    out = lines(log_jsonl=True, log_file=str(tmp_path / "log"))[0]
    assert [json.loads(line)["level"] for line in out.splitlines()] == ["info", "warning"]
    assert (tmp_path / "log").read_text().count("\n") == 2
    with pytest.raises(ConfigError, match="nowhere"):
        lines(log_file="/nowhere/log")
