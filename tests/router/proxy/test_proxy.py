"""Test requests through the router to fake workers: whole, streamed, refused, abandoned, truncated."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from typing import Any

import pytest
from llama_corral.router.app import BY_BODY, BY_QUERY
from router_http import Gateway, gateway
from router_tools import preset, until
from web_tools import error_of


async def test_every_known_route_reaches_the_worker() -> None:
    async with gateway(preset("m")) as g:
        for path in BY_BODY:
            target = path.replace("{id_slot}", "3") + "?autoload=1&x=a%2Fb"
            body = b'{ "model" : "m", "content": "\\u00e9",   "n": 1.0 }'
            response = await g.client.post(target, content=body)
            assert response.status_code == 200, path
            if "chat/completions" in path.rsplit("/input_tokens", 1)[0] and not path.endswith(("tokens", "control")):
                continue
            if path == "/tokenize":
                continue
            seen = response.json()
            assert (seen["method"], seen["target"]) == ("POST", target)
            assert seen["body"].encode("latin-1") == body, "forwarded byte for byte"
        for path in BY_QUERY:
            seen = (await g.client.get(path, params={"model": "m"})).json()
            assert seen["query"] == {"model": ["m"]}
        assert (await g.client.get("/props?model=m")).json()["worker"]["name"] == "m"


async def test_forwarded_and_dropped_headers() -> None:
    async with gateway(preset("m"), cors_origins="http://a.b") as g:
        sent = [
            *[("X-Twice", "1"), ("X-Twice", "2"), ("Authorization", "Bearer k"), ("X-Conversation-Id", "c")],
            *[("Accept-Encoding", "gzip"), ("TE", "trailers"), ("X-Hop", "1"), ("Connection", "keep-alive, X-Hop")],
            *[("Keep-Alive", "timeout=5"), ("Proxy-Authorization", "p"), ("Origin", "http://a.b")],
        ]
        response = await g.client.post("/props", content=b'{"model": "m"}', headers=sent)
        seen = response.json()["headers"]
        assert seen["x-twice"] == "2"  # the fake worker keeps only the last one; both were sent
        assert (seen["authorization"], seen["x-conversation-id"], seen["host"]) == ("Bearer k", "c", "localhost")
        for gone in ("accept-encoding", "te", "x-hop", "connection", "keep-alive", "proxy-authorization"):
            assert gone not in seen
        assert seen["content-length"] == str(len(b'{"model": "m"}'))
        answer = response.headers
        assert answer.get_list("server") == ["llama.cpp"]
        assert answer["content-type"] == "application/json"
        assert answer["x-accel-buffering"] == "no"
        assert answer.get_list("access-control-allow-origin") == ["http://a.b"]
        assert len(answer.get_list("date")) == 1


async def test_names_of_any_kind_and_aliases() -> None:
    names = ["user/repo:Q4_K_M", "with space", "ünïcode", "a%2Fb", "CASE"]
    entries = [preset(name, aliases=(f"also {name}",)) for name in names]

    async with gateway(*entries, models_max=0) as g:
        for name in names:
            for spelled in (name, f"also {name}"):
                answer = (await g.client.post("/props", json={"model": spelled})).json()
                assert answer["worker"]["name"] == name
                assert json.loads(answer["body"].encode("latin-1"))["model"] == spelled, "left as it was written"
            assert (await g.worker_of(name))["name"] == name
        assert (await g.client.post("/props", json={"model": "case"})).status_code == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "cannot be parsed as JSON"),
        (b"\xff\xfe", "cannot be parsed as JSON"),
        (b"{}", "model name is missing from the request"),
        (b"", "model name is missing from the request"),
        (b"[]", "model name is missing from the request"),
        (b'{"model": ""}', "model name is missing from the request"),
        (b'{"model": 5}', "model name is missing from the request"),
        (b'{"model": null}', "model name is missing from the request"),
        (b'{"model": "nobody"}', "model 'nobody' not found"),
    ],
)
async def test_request_that_names_no_model_is_refused(body: bytes, message: str) -> None:
    async with gateway(preset("m")) as g:
        response = await g.client.post("/v1/chat/completions", content=body)
        error = error_of(response)
        assert (response.status_code, error["type"]) == (400, "invalid_request_error")
        assert message in error["message"]
        assert (await g.status("m"))["value"] == "unloaded"
        assert error_of(await g.client.get("/slots?model=nobody"))["message"] == "model 'nobody' not found"
        assert "missing" in error_of(await g.client.get("/metrics"))["message"]
        assert (await g.client.get("/slots?model=a%00b")).status_code == 400


async def test_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async with gateway(preset("m"), max_body=2000) as g:
        response = await g.client.post("/tokenize", content=b" " * 3000)
        assert response.status_code == 413
        assert error_of(response)["type"] == "invalid_request_error"
        assert (await g.client.post("/tokenize", json={"model": "m", "content": "x" * 1000})).status_code == 200


async def test_forms_and_bodies_that_cannot_name_a_model() -> None:
    async with gateway(preset("m")) as g:
        model = b'Content-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        file = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"\0\r\n" * 50_000 + b"\r\n"
        for parts in ((model, file), (file, model)):
            body = b"".join(b"--xyz\r\n" + part for part in parts) + b"--xyz--\r\n"
            headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
            seen = (await g.client.post("/v1/audio/transcriptions", content=body, headers=headers)).json()
            assert seen["body"].encode("latin-1") == body
            assert seen["headers"]["content-type"] == headers["Content-Type"]
        assert (await g.client.post("/lora-adapters?model=m", content=b'[{"id": 0}]')).status_code == 200
        assert (await g.client.post("/slots/0?action=erase&model=m")).status_code == 200


async def test_large_body_passes_unchanged() -> None:
    async with gateway(preset("m")) as g:
        body = json.dumps({"model": "m", "image": "QUJD" * 2_000_000}).encode()
        response = await g.client.post("/props", content=body, headers={"Expect": "100-continue"})
        assert response.json()["body"].encode("latin-1") == body


async def test_the_model_is_found_after_a_byte_order_mark() -> None:
    async with gateway(preset("m")) as g:
        response = await g.client.post("/tokenize", content=b'\xef\xbb\xbf{"model": "m", "content": "a"}')
        assert response.json() == {"tokens": [97]}


async def test_autoload_per_request() -> None:
    async with gateway(preset("m"), models_autoload=False) as g:
        assert error_of(await g.client.post("/tokenize", json={"model": "m"}))["message"] == "model is not loaded"
        response = await g.client.post("/tokenize?autoload=true", json={"model": "m", "content": "a"})
        assert response.json() == {"tokens": [97]}
    async with gateway(preset("m")) as g:
        for off in ("0", "false", "no"):
            assert (await g.client.post(f"/tokenize?autoload={off}", json={"model": "m"})).status_code == 400
        assert (await g.status("m"))["value"] == "unloaded"


async def test_worker_that_cannot_load_gives_its_reason() -> None:
    async with gateway(preset("bad", "fail-load=no such tensor"), preset("dies", "die-loading")) as g:
        for name, reason in (("bad", "no such tensor"), ("dies", "cannot go on: no reason")):
            response = await g.chat(name, stream=True)
            assert response.status_code == 500
            assert error_of(response)["message"].startswith(f"model name={name} failed to load")
            assert reason in error_of(response)["message"]


async def test_stream_arrives_complete_and_unbuffered() -> None:
    async with gateway(preset("m", "chunks=4,pause=0.1")) as g:
        request = g.client.build_request("POST", "/v1/chat/completions", json={"model": "m", "stream": True})
        response = await g.client.send(request, stream=True)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-accel-buffering"] == "no"
        loop = asyncio.get_running_loop()
        times = []
        async for line in response.aiter_lines():
            if line:
                times.append(loop.time())
        await response.aclose()
        assert len(times) == 6
        assert times[3] - times[0] > 0.2, "not held back"
        assert (await g.chat("m")).json()["choices"][0]["message"]["content"] == "word0 word1 word2 word3"


async def test_worker_that_dies_while_streaming_ends_the_stream_with_an_error() -> None:
    async with gateway(preset("m", "die-streaming")) as g:
        events = await g.events_of("m")  # would raise if the chunked body were not ended properly
        assert [event["choices"][0]["delta"]["content"] for event in events[:-1]] == ["word0 ", "word1 ", "word2 "]
        error = events[-1]["error"]
        assert (error["code"], error["type"]) == (502, "server_error")
        await g.becomes("m", "unloaded")
        assert (await g.status("m"))["failed"] is True
        assert len(await g.events_of("m")) == 4, "the next request starts it again"


async def test_worker_that_dies_before_its_first_byte_is_a_502() -> None:
    async with gateway(preset("m", "pause=5,chunks=3")) as g:
        await g.client.post("/tokenize", json={"model": "m"})
        request = asyncio.create_task(g.chat("m"))
        await until(lambda: any(view.leases for view in g.lifecycle.views()))
        pid = (await g.worker_of("m"))["pid"]
        os.kill(pid, signal.SIGKILL)
        response = await request
        assert response.status_code == 502
        assert error_of(response)["type"] == "server_error"


async def _abandoned(g: Gateway, model: str, *, stream: bool, after_first: bool) -> None:
    """Send a chat request on a separate connection and disconnect."""
    body = json.dumps({"model": model, "stream": stream}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    if after_first:
        await reader.readuntil(b"word0")
    else:
        await until(lambda: any(view.leases or view.waiting for view in g.lifecycle.views() if view.name == model))
    writer.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_client_that_disconnects_ends_its_generation(stream: bool) -> None:
    async with gateway(preset("m", "chunks=100,pause=0.1")) as g:
        await g.client.post("/tokenize", json={"model": "m"})
        started = asyncio.get_running_loop().time()
        await _abandoned(g, "m", stream=stream, after_first=stream)
        await until(lambda: not any(view.leases for view in g.lifecycle.views()))
        await g.has_cancelled("m")
        assert asyncio.get_running_loop().time() - started < 1.0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_client_that_disconnects_during_the_load_leaves_no_lease(stream: bool) -> None:
    async with gateway(preset("m", "load=0.5")) as g:
        await _abandoned(g, "m", stream=stream, after_first=False)
        await until(lambda: not any(view.waiting for view in g.lifecycle.views()))
        await g.becomes("m", "loaded")
        assert (await g.worker_of("m"))["served"] == 1, "only this question"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_client_that_disconnects_while_queued_delays_no_other_request(stream: bool) -> None:
    async with gateway(preset("a", "chunks=6,pause=0.1"), preset("b"), models_max=1) as g:
        busy = asyncio.create_task(g.chat("a"))
        await g.becomes("a", "loaded")
        await _abandoned(g, "b", stream=stream, after_first=False)
        await until(lambda: not any(view.waiting for view in g.lifecycle.views()))
        assert (await busy).status_code == 200
        assert (await g.status("a"))["value"] == "loaded"
        assert (await g.status("b"))["value"] == "unloaded"


async def test_hundred_clients_for_three_models_with_room_for_one() -> None:
    models = [preset(name, "chunks=2") for name in "abc"]
    async with gateway(*models, models_max=1) as g:

        async def one(number: int) -> str:
            model = "abc"[number % 3]
            if number % 2:
                events = await g.events_of(model)
                assert events[-1]["choices"][0]["finish_reason"] == "stop"
            else:
                response = await g.chat(model)
                assert response.status_code == 200, response.text
                assert response.json()["model"] == model
            return model

        counts = Counter(await asyncio.gather(*(one(number) for number in range(100))))
        assert counts == {"a": 34, "b": 33, "c": 33}
        running = [view for view in g.lifecycle.views() if view.is_running]
        assert len(running) == 1
        assert not any(view.leases or view.waiting for view in g.lifecycle.views())


async def test_the_lease_of_a_client_that_stops_reading_ends() -> None:
    async with gateway(preset("m"), timeout=1) as g:
        await g.client.post("/tokenize", json={"model": "m"})
        body = json.dumps({"model": "m", "filler": "x" * 30_000_000}).encode()  # echoed, so that the response is long
        _, writer = await asyncio.open_connection("127.0.0.1", g.port, limit=2**10)
        writer.write(f"POST /props HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        await until(lambda: any(view.leases for view in g.lifecycle.views()))
        await until(lambda: not any(view.leases for view in g.lifecycle.views()))
        writer.close()


async def test_two_hundred_open_streams() -> None:
    async with gateway(preset("m", "chunks=3,pause=0.2")) as g:
        answers: list[list[dict[str, Any]]] = await asyncio.gather(*(g.events_of("m") for _ in range(200)))
        assert all(len(events) == 4 for events in answers)


async def test_shutdown_refuses_waiting_requests_and_ends_streams() -> None:
    async with gateway(preset("a", "chunks=1000,pause=0.05"), preset("b"), models_max=1) as g:
        stream = asyncio.create_task(g.events_of("a"))
        await g.becomes("a", "loaded")
        waiting = asyncio.create_task(g.chat("b"))
        await until(lambda: any(view.waiting for view in g.lifecycle.views()))
        closing = asyncio.create_task(g.lifecycle.close())
        assert (await waiting).status_code == 503
        assert "error" in (await stream)[-1]
        await closing
