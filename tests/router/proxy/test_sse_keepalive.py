"""Test streams that wait: they get comments, and later errors still reach the client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from router_http import Gateway, gateway
from router_tools import PATIENCE, preset, until

CHAT = "/v1/chat/completions"
EARLY: dict[str, Any] = {"stream_open_after": 0.1, "sse_ping_interval": 1}


async def lines_of(g: Gateway, model: str, path: str = CHAT, **headers: str) -> tuple[int, list[str]]:
    body = {"model": model, "stream": True}
    async with g.client.stream("POST", path, json=body, headers=headers) as response:
        return response.status_code, [line async for line in response.aiter_lines() if line]


async def test_a_stream_that_waits_for_its_model_gets_comments() -> None:
    async with gateway(preset("m", "load=2.4"), **EARLY) as g:
        status, lines = await lines_of(g, "m")
    comments = [line for line in lines if line.startswith(":")]
    events = [line for line in lines if not line.startswith(":")]
    assert status == 200
    assert comments[0].startswith(": loading")
    assert 2 <= len(comments) <= 4, comments
    assert all(line.startswith("data: ") for line in events)
    assert (len(events), events[-1]) == (7, "data: [DONE]")
    assert lines[: len(comments)] == comments


async def test_a_stream_that_waits_for_its_first_token_gets_comments() -> None:
    async with gateway(preset("m", "think=0.5"), **EARLY) as g:
        await g.lifecycle.load("m")
        await g.becomes("m", "loaded")
        status, lines = await lines_of(g, "m")
    assert status == 200
    assert lines[0] == ": waiting for the first token"
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("path", "kind"), [(CHAT, "error"), ("/v1/messages", "anthropic"), ("/v1/responses", "error"), ("/infill", "error")]
)
async def test_a_late_refusal_is_an_error_event(path: str, kind: str) -> None:
    async with gateway(preset("m", "load=0.5,fail-load=no such file"), **EARLY) as g:
        status, lines = await lines_of(g, "m", path)
    assert status == 200
    assert lines[0].startswith(": ")
    value = json.loads(lines[-1].removeprefix("data: "))
    assert "no such file" in value["error"]["message"]
    if kind == "anthropic":
        assert lines[-2] == "event: error"
        assert value["type"] == "error"
    else:
        assert value["error"]["code"] == 500


async def test_a_late_refusal_of_the_worker_is_an_error_event() -> None:
    async with gateway(preset("m", "think=0.4,refuse=400"), **EARLY) as g:
        status, lines = await lines_of(g, "m")
    assert status == 200
    assert json.loads(lines[-1].removeprefix("data: "))["error"] == {
        "code": 400,
        "message": "no",
        "type": "server_error",
    }


async def test_load_progress_is_sent_as_reasoning_if_enabled() -> None:
    async with gateway(preset("m", "load=2.4"), **EARLY, stream_load_progress=True) as g:
        status, lines = await lines_of(g, "m")
        assert status == 200
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        thoughts = [chunk for chunk in chunks if "reasoning_content" in chunk["choices"][0]["delta"]]
        assert len(thoughts) >= 2
        assert chunks[: len(thoughts)] == thoughts
        assert (thoughts[0]["model"], thoughts[0]["object"]) == ("m", "chat.completion.chunk")
        said = [chunk["choices"][0]["delta"]["reasoning_content"] for chunk in thoughts]
        assert said[0].startswith("loading")
        assert len(set(said)) == len(said), "each once"
        await g.lifecycle.unload("m")
        await g.becomes("m", "unloaded")
        status, lines = await lines_of(g, "m", "/v1/completions")
        assert lines[0].startswith(": "), "these have no thoughts"


async def test_an_early_refusal_has_its_own_status() -> None:
    async with gateway(preset("m", "load=0.2,fail-load=no"), stream_open_after=30, sse_ping_interval=1) as g:
        assert (await lines_of(g, "m"))[0] == 500


@pytest.mark.parametrize("given", [{"stream_open_after": -1}, {"stream_open_after": 0.1, "sse_ping_interval": -1}])
async def test_comments_can_be_disabled(given: dict[str, Any]) -> None:
    async with gateway(preset("m", "load=0.4,fail-load=no"), **given) as g:
        assert (await lines_of(g, "m"))[0] == 500


async def test_no_comments_without_a_stream_in_json_lines_and_resumable_streams() -> None:
    async with gateway(preset("m", "load=0.4,fail-load=no"), preset("n", "load=0.4"), **EARLY) as g:
        assert (await g.chat("m")).status_code == 500
        status, lines = await lines_of(g, "n", "/api/chat")
        assert status == 200
        assert not [line for line in lines if line.startswith(":")]
    async with gateway(preset("n", "load=0.4"), **EARLY) as g:
        status, lines = await lines_of(g, "n", **{"X-Conversation-Id": "c"})
        assert status == 200
        assert not [line for line in lines if line.startswith(":")], "its client counts the bytes"


async def test_a_client_that_disconnects_during_comments_leaves_the_queue() -> None:
    async with gateway(preset("busy", "pause=0.1,chunks=1000"), preset("m"), models_max=1, **EARLY) as g:
        busy = asyncio.create_task(lines_of(g, "busy"))
        await g.becomes("busy", "loaded")
        async with g.client.stream("POST", CHAT, json={"model": "m", "stream": True}) as response:
            async with asyncio.timeout(PATIENCE):
                assert await anext(response.aiter_lines()) == ": waiting in the queue"
            assert g.waiting("m") == 1
        await until(lambda: g.waiting("m") == 0)
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
