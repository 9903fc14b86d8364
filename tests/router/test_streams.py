"""Test resumable streams through the router: owners of conversations, parked requests, clients that disconnect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from functools import partial
from typing import Any

import httpx
import pytest
from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, TooManyRequests
from llama_corral.router import app
from llama_corral.router.models.events import MAX_LISTENERS
from llama_corral.router.proxy.conversations import Conversation, Conversations
from programs import Program, Programs, wait_until
from router_http import Gateway, gateway
from router_tools import preset, until
from web_tools import error_of

TINY = """
[one]
model = {models}/tiny-llama.gguf
ctx-size = 16384
parallel = 2
threads = 1

[two]
model = {models}/tiny-llama-b.gguf
ctx-size = 16384
parallel = 2
threads = 1
"""
ENDLESS = {"prompt": "Once upon a time", "n_predict": -1, "ignore_eos": True, "stream": True}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "stream": True}


async def hang_up(port: int, path: str, body: dict[str, Any], conversation: str, *, read: int) -> bytes:
    """Send a request with a conversation, read so many bytes of the response, and disconnect."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Conversation-Id: {conversation}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    await writer.drain()
    start = await reader.readexactly(read) if read else b""
    writer.close()
    return start


def leases(g: Gateway, model: str) -> int:
    view = g.lifecycle.view(model)
    assert view is not None
    return view.leases


# -- conversations ---------------------------------------------------------------------------------------------------


async def test_a_stop_ends_a_parked_request_and_ended_conversations_are_removed() -> None:
    async def park(conversation: Conversation) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def answer(conversation: Conversation) -> web.StreamResponse:
        conversation.is_parked = False
        return web.Response()

    conversations = Conversations(kept_s=0.02)
    first = asyncio.ensure_future(conversations.run("c", "m", park, outlives_client=True))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(conversations.run("c", "m", park, outlives_client=True))
    with pytest.raises(InvalidRequest, match="cancelled by a stop"):
        await first
    assert conversations.find("c") is not None
    conversations.stop("c")
    with pytest.raises(InvalidRequest):
        await second
    assert conversations.find("c") is None
    await conversations.run("c::m", "m", answer, outlives_client=True)
    assert list(conversations.matching(["c", "x"])) == ["c::m"]
    await until(lambda: conversations.find("c::m") is None)


# -- with fake workers -----------------------------------------------------------------------------------------------


async def test_a_client_that_disconnects_during_the_load_does_not_end_its_stream() -> None:
    async with gateway(preset("m", "load=0.4,chunks=20,pause=0.02")) as g:
        await hang_up(g.port, "/v1/chat/completions", {"model": "m", "stream": True}, "c", read=0)
        await until(lambda: g.waiting("m"))
        retry = await g.client.get("/v1/stream?conv_id=c")
        assert (retry.status_code, error_of(retry)["type"]) == (503, "unavailable_error")
        assert "loading" in error_of(retry)["message"]
        await g.becomes("m", "loaded")
        assert leases(g, "m") == 1, "the stream holds the lease without its client"
        await until(lambda: leases(g, "m") == 0)
        worker = await g.worker_of("m")
        assert (worker["served"], worker["cancelled"]) == (2, 0)


async def test_a_model_with_an_abandoned_stream_is_not_evicted() -> None:
    async with gateway(preset("m", "chunks=30,pause=0.02"), preset("n"), models_max=1) as g:
        body = {"model": "m", "stream": True}
        assert await hang_up(g.port, "/v1/chat/completions", body, "c", read=15) == b"HTTP/1.1 200 OK"
        other = asyncio.ensure_future(g.chat("n"))
        await until(lambda: g.waiting("n"))
        assert leases(g, "m") == 1
        assert (await other).status_code == 200
        assert (await g.status("m"))["value"] == "unloaded"


async def test_a_request_without_a_stream_ends_when_its_client_disconnects() -> None:
    async with gateway(preset("m", "chunks=1000,pause=0.02")) as g:
        await g.client.post("/models/load", json={"model": "m"})
        await g.becomes("m", "loaded")
        asking = asyncio.ensure_future(
            g.client.post("/v1/chat/completions", json={"model": "m"}, headers={"X-Conversation-Id": "c"})
        )
        await until(lambda: leases(g, "m"))
        asking.cancel()
        await until(lambda: leases(g, "m") == 0)
        await g.has_cancelled("m")


async def test_a_stop_while_the_model_loads_ends_the_request() -> None:
    async with gateway(preset("busy", "chunks=400,pause=0.02"), preset("m"), models_max=1) as g:
        holding = asyncio.ensure_future(g.events_of("busy"))
        await until(lambda: leases(g, "busy"))
        asking = asyncio.ensure_future(
            g.client.post(
                "/v1/chat/completions", json={"model": "m", "stream": True}, headers={"X-Conversation-Id": "c"}
            )
        )
        await until(lambda: g.waiting("m"))
        stopped = await g.client.delete("/v1/stream?conv_id=c")
        assert (stopped.status_code, stopped.content) == (204, b"")
        refused = error_of(await asking)
        assert refused["code"] == 400
        assert refused["message"] == "request cancelled by a stop while the model was loading"
        assert g.waiting("m") == 0, "nothing is evicted or loaded for it"
        assert (await g.client.get("/v1/stream?conv_id=c")).status_code == 404
        holding.cancel()


async def test_a_refused_request_leaves_no_conversation() -> None:
    async with gateway(preset("m", "load=30")) as g:
        headers = {"X-Conversation-Id": "c"}
        for query, body in (("", {"model": "nobody"}), ("?autoload=0", {"model": "m"})):
            asked = await g.client.post(f"/v1/chat/completions{query}", json=body, headers=headers)
            assert asked.status_code == 400
            await asyncio.sleep(0)
            assert (await g.client.get("/v1/stream?conv_id=c")).status_code == 404
        for method in ("GET", "DELETE"):
            missing = error_of(await g.client.request(method, "/v1/stream"))
            assert (missing["code"], missing["message"]) == (400, "Missing conversation id in path")
        assert (await g.client.delete("/v1/stream?conv_id=nobody")).status_code == 204
        for content in (b"{", b"[]", b'{"conversation_ids": "c"}', b'{"conversation_ids": [7, "", "c"]}'):
            assert (await g.client.post("/v1/streams/lookup", content=content)).json() == []


async def test_queries_to_the_owner_have_the_clients_headers_and_the_prefix() -> None:
    async with gateway(preset("m"), api_prefix="/p") as g:
        headers = {"X-Conversation-Id": "a/b", "Authorization": "Bearer key"}
        done = await g.client.post("/p/v1/chat/completions", json={"model": "m", "stream": True}, headers=headers)
        assert done.status_code == 200
        answer = await g.client.get("/p/v1/stream?conv_id=a%2Fb&from=3", headers={"Authorization": "Bearer key"})
        seen = answer.json()
        assert (seen["method"], seen["target"]) == ("GET", "/p/v1/stream?conv_id=a%2Fb&from=3")
        assert seen["headers"]["authorization"] == "Bearer key"
        await g.client.post("/p/models/unload", json={"model": "m"})
        await until(lambda: (view := g.lifecycle.view("m")) and not view.is_running)
        assert (await g.client.get("/p/v1/stream?conv_id=a%2Fb")).status_code == 404


# -- with real workers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(module_programs: Programs) -> Program:
    return module_programs.gateway("--models-max", "2", presets=TINY)


def ask(program: Program, model: str, conversation: str, body: dict[str, Any]) -> httpx.Response:
    path = "/v1/chat/completions" if "messages" in body else "/completion"
    return program.client.post(path, json={"model": model, **body}, headers={"X-Conversation-Id": conversation})


def lookup(program: Program, *conversations: str) -> dict[str, dict[str, Any]]:
    answer = program.client.post("/v1/streams/lookup", json={"conversation_ids": list(conversations)})
    return {entry["conversation_id"]: entry for entry in answer.raise_for_status().json()}


def is_idle(program: Program, model: str) -> bool:
    return not any(slot["is_processing"] for slot in program.client.get(f"/slots?model={model}").json())


def test_replay_lookup_and_stop(server: Program) -> None:
    sent = {model: ask(server, model, f"conv::{model}", CHAT).content for model in ("one", "two")}
    assert all(content.endswith(b"data: [DONE]\n\n") for content in sent.values())
    for model, content in sent.items():
        replayed = server.client.get(f"/v1/stream?conv_id=conv::{model}&from=20")
        assert replayed.content == content[20:]
        assert replayed.headers["content-type"] == "text/event-stream"
    found = lookup(server, "conv", "conv::nobody")
    assert {name: entry["total_bytes"] for name, entry in found.items()} == {
        f"conv::{model}": len(content) for model, content in sent.items()
    }
    assert server.client.delete("/v1/stream?conv_id=conv::one").status_code == 204
    assert list(lookup(server, "conv")) == ["conv::two"]
    assert server.client.get("/v1/stream?conv_id=conv::one").status_code == 404


async def test_generation_continues_without_its_client_and_can_be_stopped(server: Program) -> None:
    body = {**ENDLESS, "model": "one"}
    await hang_up(int(server.address), "/completion", body, "live", read=15)
    with server.client.stream("GET", "/v1/stream?conv_id=live") as follower:
        lines = (line for line in follower.iter_lines() if line)
        assert json.loads(next(lines).removeprefix("data: "))["stop"] is False
        assert lookup(server, "live")["live"]["is_done"] is False
        assert server.client.delete("/v1/stream?conv_id=live").status_code == 204
        assert not any('"stop":true' in line for line in lines), "it ended by the stop"
    wait_until(lambda: is_idle(server, "one"), "the slot to be free")


async def test_a_conversation_that_moves_to_another_model_is_stopped_at_the_first(server: Program) -> None:
    await hang_up(int(server.address), "/completion", {**ENDLESS, "model": "one"}, "moved", read=15)
    sent = ask(server, "two", "moved", CHAT)
    assert server.client.get("/v1/stream?conv_id=moved").content == sent.content
    wait_until(lambda: is_idle(server, "one"), "the first request to end")


async def test_shutdown_does_not_wait_for_abandoned_streams(programs: Programs) -> None:
    gateway = programs.gateway(presets=TINY)
    await hang_up(int(gateway.address), "/completion", {**ENDLESS, "model": "one"}, "left", read=15)
    assert lookup(gateway, "left")["left"]["is_done"] is False
    assert gateway.stop() == 0
    assert "Traceback" not in gateway.log_text
    assert "never retrieved" not in gateway.log_text


# -- limits ----------------------------------------------------------------------------------------------------------


async def never(_: Conversation) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def at_once(conversation: Conversation) -> web.StreamResponse:
    conversation.is_parked = False
    return web.Response()


async def test_conversations_are_bounded_in_number() -> None:
    conversations = Conversations(most=3)
    for number in range(5):
        await conversations.run(f"ended {number}", "m", at_once, outlives_client=True)
        await asyncio.sleep(0)
    known = [f"ended {number}" for number in range(5) if conversations.find(f"ended {number}")]
    assert known == ["ended 2", "ended 3", "ended 4"], "the one that ended first is forgotten"
    running = [
        asyncio.create_task(conversations.run(f"runs {at}", "m", never, outlives_client=True)) for at in range(3)
    ]
    await asyncio.sleep(0)
    assert not any(conversations.find(name) for name in known)
    for _ in range(10):
        with pytest.raises(TooManyRequests, match="already 3 unfinished"):
            await conversations.run("one more", "m", at_once, outlives_client=True)
    conversations.stop("runs 0")
    await asyncio.wait(running[:1])
    await conversations.run("one more", "m", at_once, outlives_client=True)
    await conversations.close()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_refused_request_stops_nothing() -> None:
    conversations = Conversations(most=2)
    running = [asyncio.create_task(conversations.run(name, "m", never, outlives_client=True)) for name in "ab"]
    await asyncio.sleep(0)
    before = conversations.find("a")
    with pytest.raises(TooManyRequests, match="already 2 unfinished requests in conversations"):
        await conversations.run("a", "m", at_once, outlives_client=True)
    assert conversations.find("a") is before
    assert not running[0].done()
    await conversations.close()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_conversation_of_a_known_name_replaces_no_other() -> None:
    conversations = Conversations(most=2)
    for name in "abb":
        await conversations.run(name, "m", at_once, outlives_client=True)
        await asyncio.sleep(0)
    assert conversations.find("a") is not None


async def test_a_refused_request_leaves_the_stream_of_another_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "Conversations", partial(Conversations, most=1))
    async with gateway(preset("m", "chunks=1000,pause=0.02"), preset("n")) as g:
        await g.client.post("/models/load", json={"model": "m"})
        await g.becomes("m", "loaded")
        await hang_up(g.port, "/v1/chat/completions", {"model": "m", "stream": True}, "c", read=100)
        refused = await g.client.post(
            "/v1/chat/completions", json={"model": "n", "stream": True}, headers={"X-Conversation-Id": "c"}
        )
        assert (refused.status_code, error_of(refused)["type"]) == (429, "rate_limit_error")
        assert leases(g, "m") == 1
        found = (await g.client.get("/v1/stream?conv_id=c")).json()
        assert found["target"] == "/v1/stream?conv_id=c", "its worker was asked"


async def test_a_conversation_leaves_nothing_behind() -> None:
    conversations = Conversations(most=2)
    timers = weakref.WeakSet[asyncio.TimerHandle]()
    for number in range(100):
        await conversations.run(f"c{number % 3}", "m", at_once, outlives_client=True)
        await asyncio.sleep(0)
        found = conversations.find(f"c{number % 3}")
        assert found is not None
        assert found.expiry is not None
        timers.add(found.expiry)
    assert sum(not timer.cancelled() for timer in timers) <= 2


async def test_a_lookup_of_many_names_looks_at_each_conversation_once() -> None:
    conversations = Conversations()
    compared = 0

    class Name(str):
        __slots__ = ()

        def startswith(self, *given: Any) -> bool:
            nonlocal compared
            compared += 1
            return super().startswith(*given)

    for number in range(100):
        await conversations.run(Name(f"c{number}::model"), "m", at_once, outlives_client=True)
    assert list(conversations.matching(f"c{number}" for number in range(99, 20_000))) == ["c99::model"]
    assert compared <= 100


async def test_names_and_lookups_have_a_length() -> None:
    async with gateway(preset("m")) as g:
        for name, status in (("c" * 256, 200), ("c" * 257, 400), ("c" * 60_000, 400)):
            response = await g.client.post(
                "/completion", json={"model": "m", "prompt": "a"}, headers={"X-Conversation-Id": name}
            )
            assert response.status_code == status, response.text
        assert "at most 256 characters, found 60000" in error_of(response)["message"]
        for n_ids, status in ((10_000, 200), (100_000, 413)):
            ids = [f"{number:032}" for number in range(n_ids)]
            response = await g.client.post("/v1/streams/lookup", json={"conversation_ids": ids})
            assert response.status_code == status, response.text


async def test_listeners_are_bounded_in_number() -> None:
    async with gateway(preset("m")) as g, contextlib.AsyncExitStack() as listening:
        for _ in range(MAX_LISTENERS):
            await listening.enter_async_context(g.lifecycle.subscribe())
        response = await g.client.get("/models/sse")
        assert (response.status_code, error_of(response)["type"]) == (429, "rate_limit_error")
        assert f"{MAX_LISTENERS} clients already listen" in error_of(response)["message"]
