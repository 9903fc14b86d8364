"""Hostile and wrong input: wrong values in each field of each dialect do not change the worker's behaviour.

A request is answered, or refused as a client error in its dialect's format. No handler fails, no slot remains busy, and
the next request gets the same answer as before.
"""

from __future__ import annotations

import gzip
import json
import random
import socket
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from llama_corral.common.web.request_body import LOOKUP_BODY, OWN_BODY
from programs import Program, Programs, wait_until
from request_bodies import BODIES, CALL, TOOL, TURNS

Path = tuple[str | int, ...]


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


WRONG: list[bytes] = [
    *(b"null", b"true", b"0", b"-1", b"1.5", b"2147483647", b"-1000000000000000", b"18446744073709551621", b"1e308"),
    *(b"9" * 309, b"9" * 400, b"-" + b"9" * 4300),
    *(b"1e400", b"NaN", b"9" * 5000, b'""', b'"x"', b'"\\ud800"', b'"a\\u0000b"', b'"' + b"A" * 100_000 + b'"'),
    *(b"[]", b"{}", b'[null,1,"a",{},[],true]', b"[-1,1099511627776,1.5]", b'{"a":{"b":[1,null]}}', b"[[[[]]]]"),
    *(deep(200), deep(500), deep(975), deep(10_000), b'{"type":' * 240 + b"1" + b"}" * 240),
]
BROKEN: list[bytes] = [
    *(b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff\xfe{}", b"{}{}", b'{"a":1,}', b"{'a':1}", b"\0", b'{"a":"\xff"}'),
    *(b"\xef\xbb\xbf{}", deep(10_000), b'{"a":' * 100_000, b'{"messages":1,"messages":2,"prompt":3,"prompt":{}}'),
]


def places(value: Any, at: Path = ()) -> Iterator[Path]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(item, (*at, key))


def changed(body: Any, at: Path, wrong: bytes | None) -> bytes:
    """Return the body as JSON with the value at one place replaced by `wrong`, or removed if that is None."""
    body = deepcopy(body)
    parent = body
    for key in at[:-1]:
        parent = parent[key]
    if wrong is None:
        del parent[at[-1]]
        return json.dumps(body).encode()
    parent[at[-1]] = "@@"
    return json.dumps(body).encode().replace(b'"@@"', wrong)


@dataclass(frozen=True)
class Sane:
    """Probes that the worker is still healthy: a fixed answer and idle slots."""

    program: Program

    def answer(self) -> str:
        body = {"prompt": "Once upon a time", "n_predict": 8, "temperature": 0, "cache_prompt": False}
        return str(self.program.client.post("/completion", json=body).raise_for_status().json()["content"])

    def is_idle(self) -> bool:
        return not any(slot["is_processing"] for slot in self.program.client.get("/slots").json())


@pytest.fixture(scope="module")
def victim(module_programs: Programs) -> Program:
    template = module_programs.directory / "template.jinja"
    template.write_text(
        "{% for t in tools or [] %}{{ (t | tojson)[:99] }}{% endfor %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>\n"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
        "</tool_call>{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return module_programs.worker(
        *("--ctx-size", "1024", "--parallel", "2", "--threads", "1", "--slots"),
        *("--lora", str(module_programs.models / "tiny-lora.gguf"), "--chat-template-file", str(template)),
    )


def check(path: str, response: httpx.Response, sent: bytes) -> None:
    """Check that the request was answered, or refused in the dialect's error format with a message."""
    where = f"{path} {sent[:300]!r}: {response.status_code} {response.text[:300]}"
    status = response.status_code
    assert status < 500 or status == 501, where
    if status < 400:
        return
    error = response.json()["error"]
    if path.startswith("/api/"):
        assert error, where
        assert isinstance(error, str), where
        return
    assert error["message"], where
    assert error["type"], where
    assert ("code" in error) != path.startswith("/v1/messages"), where


def test_wrong_values_in_every_field_are_handled(victim: Program) -> None:
    sane, chance = Sane(victim), random.Random(5)
    before = sane.answer()
    for path, body in BODIES:
        requests = [changed(body, at, None) for at in places(body)]
        for at in places(body):
            requests += [changed(body, at, wrong) for wrong in chance.sample(WRONG, 5)]
        for sent in [*BROKEN, *requests]:
            check(path, victim.client.post(path, content=sent), sent)
        wait_until(sane.is_idle, f"the slots are idle after {path}")
    victim.client.post(
        "/lora-adapters", json=[{"id": 0, "scale": 1.0}]
    ).raise_for_status()  # valid requests have changed the scale
    assert sane.answer() == before
    assert "Traceback" not in victim.log_text


@pytest.mark.parametrize("levels", [257, 500, 940, 975, 990])
def test_too_deeply_nested_json_is_refused(victim: Program, levels: int) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": "@@"}}
    for place in ({"messages": [*TURNS[:2], {**TURNS[2], "tool_calls": [call]}]}, {"tools": [{**TOOL, "x": "@@"}]}):
        body = {"messages": TURNS[:2], "max_tokens": 1, **place}
        response = victim.client.post(
            "/v1/chat/completions", content=json.dumps(body).encode().replace(b'"@@"', deep(levels))
        )
        assert response.status_code == 400
        assert response.json()["error"]["message"].endswith("it is nested too deeply")


def test_tools_with_deep_schemas_are_accepted(victim: Program) -> None:
    """Such schemas are usually generated, so the client cannot easily change them."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(110):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {"messages": TURNS[:2], "max_tokens": 1, "tools": [tool]}
    assert victim.client.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/stream?conv_id=known&from=" + "9" * 5000, "Invalid 'from' offset"),
        ("/v1/stream?conv_id=known&from=٣", "Invalid 'from' offset"),
        ("/v1/stream?conv_id=known&from=-1", "Invalid 'from' offset"),
        ("/v1/stream?conv_id=a%00b", "query parameter 'conv_id' contains a NUL character"),
    ],
)
def test_wrong_query_parameters(victim: Program, path: str, message: str) -> None:
    body = {"prompt": "a", "n_predict": 1, "stream": True}
    assert victim.client.post("/completion", json=body, headers={"X-Conversation-Id": "known"}).status_code == 200
    response = victim.client.get(path)
    assert (response.status_code, response.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize("limit", ["9" * 5000, "0", "101", "-1", "x", "\N{ARABIC-INDIC DIGIT THREE}"])
def test_the_page_limit_of_stored_items_is_checked(victim: Program, limit: str) -> None:
    made = victim.client.post("/v1/responses", json={"input": "a", "max_output_tokens": 1}).raise_for_status().json()
    response = victim.client.get(f"/v1/responses/{made['id']}/input_items", params={"limit": limit})
    message = "query parameter 'limit' must be a number from 1 to 100"
    assert (response.status_code, response.json()["error"]["message"]) == (400, message)


def exchange(program: Program, head: bytes, body: bytes) -> tuple[int, bytes]:
    url = program.client.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as sock:
        length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        sock.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\n" + head + length + body)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    return int(answer[9:12]), answer.rpartition(b"\r\n\r\n")[2]


PLAIN = b'{"prompt": "a", "n_predict": 1}'


def test_a_body_with_the_wrong_content_encoding_is_refused(victim: Program) -> None:
    encoding = b"Content-Encoding: gzip\r\n"
    assert exchange(victim, encoding, gzip.compress(PLAIN))[0] == 200
    status, body = exchange(victim, encoding, PLAIN)
    assert status == 400
    assert "Can not decode content-encoding: gzip" in json.loads(body)["error"]["message"]
    assert "Traceback" not in victim.log_text


def test_a_malformed_or_truncated_body_is_refused_immediately(victim: Program) -> None:
    url = victim.client.base_url
    head = b"POST /completion HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    for end, status in ((b"zz\r\n", b"400"), (b"", b"")):
        with socket.create_connection((url.host, url.port), timeout=10) as sock:
            sock.sendall(head)
            assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"%x\r\n%b\r\n" % (len(PLAIN), PLAIN) + end)
            if not end:
                sock.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: sock.recv(65536), b""))[9:12] == status
    assert not any(slot["is_processing"] for slot in victim.client.get("/slots").json())
    assert victim.client.post("/completion", content=PLAIN).status_code == 200


@pytest.mark.parametrize("value", [b"x", b"\xff\xfe", b""])
def test_unknown_expect_headers_are_ignored(victim: Program, value: bytes) -> None:
    assert exchange(victim, b"Expect: " + value + b"\r\n", PLAIN)[0] == 200


def test_expect_100_continue_is_answered(victim: Program) -> None:
    assert exchange(victim, b"Expect: 100-continue\r\n", PLAIN)[0] == 100


def test_the_error_for_a_huge_pattern_does_not_repeat_it(victim: Program) -> None:
    schema = {"type": "string", "pattern": "^" + "A" * 1_000_000 + "$"}
    response = victim.client.post("/completion", json={"prompt": "a", "n_predict": 1, "json_schema": schema})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.endswith("is not supported: more than 32768 characters")
    assert len(message) < 400


@pytest.mark.parametrize("path", ["/api/show", "/api/pull", "/v1/streams/lookup"])
def test_a_body_that_gives_a_command_is_small(worker: Program, path: str) -> None:
    """The same limits as in the router."""
    most = LOOKUP_BODY if path == "/v1/streams/lookup" else OWN_BODY
    for size, is_refused in ((most, False), (most + 1, True)):
        body = json.dumps({"model": "none", "x": ""}).encode()
        sent = body.replace(b'""', b'"' + b"x" * (size - len(body)) + b'"')
        assert len(sent) == size
        refused = worker.client.post(path, content=sent)
        assert (refused.status_code == 413) is is_refused
        assert not is_refused or f"is larger than {path} allows ({most} bytes)" in refused.text
