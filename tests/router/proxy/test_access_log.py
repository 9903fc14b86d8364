"""The router's access log: the model and the message of each request, whether the router or a worker refuses it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from llama_corral.common.base.errors import ServerFault
from llama_corral.common.web.application import error_event
from llama_corral.common.web.envelopes import ANTHROPIC, OLLAMA
from llama_corral.router.proxy.relay import failure_at_end
from programs import wait_until
from router_http import Gateway, gateway
from router_tools import preset

CHAT = "/v1/chat/completions"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Return a function that returns the lines of the level INFO so far, without peer and duration."""
    caplog.set_level(logging.INFO, "corral.access")

    def read() -> list[str]:
        texts = [record.getMessage() for record in caplog.records if record.name == "corral.access"]
        assert all(text.startswith("127.0.0.1 ") for text in texts)
        return [_without_time(text.partition(" ")[2]) for text in texts]

    return read


def _without_time(text: str) -> str:
    words = text.split(" ")
    at = next(i for i, word in enumerate(words) if word.rstrip(":") == "ms")
    words[at - 1 : at + 1] = [":"] if words[at].endswith(":") else []
    return " ".join(words).replace(" :", ":")


async def test_a_request_for_a_model_names_it(lines: Any) -> None:
    async with gateway(preset("m", "load=0", aliases=("short",))) as g:
        await g.chat("short")
        await g.client.get("/props", params={"model": "m"})
        await g.client.get("/props", params={"model": "nope"})
        await g.client.post("/api/chat", json={"model": "m:latest", "messages": []})
        await g.client.post("/models/unload", json={"model": "m"})
    assert lines() == [
        f"POST {CHAT} name=m 200",
        "GET /props name=nope 400: model 'nope' not found",
        "POST /api/chat name=m 200",
        "POST /models/unload name=m 200",
    ]


async def test_every_refusal_of_the_router_has_its_line(lines: Any) -> None:
    async with gateway(preset("m", "load=0"), models_autoload=False) as g:
        await g.chat("nope")
        await g.client.post(CHAT, content=b"{")
        await g.client.post("/v1/unknown", json={})
        await g.client.post("/v1/messages", json={"model": "a b\nc"})
        await g.client.post("/api/chat", json={"model": "gone"})
        await g.client.post("/models/load", json={"model": "gone"})
        await g.client.post("/api/pull", json={"model": "no-repository"})
        await g.client.delete("/models", params={"model": "m"})
        await g.chat("m")
    found = lines()
    assert [line.partition(":")[0] for line in found] == [
        f"POST {CHAT} name=nope 400",
        f"POST {CHAT} 400",
        "POST /v1/unknown 404",
        'POST /v1/messages name="a b\\nc" 404',
        "POST /api/chat name=gone 404",
        "POST /models/load name=gone 404",
        "POST /api/pull name=no-repository 400",
        "DELETE /models name=m 400",
        f"POST {CHAT} name=m 400",
    ]
    assert all(line.partition(": ")[2] for line in found), found


async def test_a_refusal_by_the_worker_has_its_message(lines: Any) -> None:
    async with gateway(preset("m", "refuse=429")) as g:
        answer = await g.chat("m")
    message = answer.json()["error"]["message"]
    assert lines() == [f"POST {CHAT} name=m 429: {message}"]


async def test_a_stream_that_fails_after_its_status_has_the_reason(lines: Any) -> None:
    async with gateway(preset("m", "die-streaming")) as g:
        await g.events_of("m")
    (line,) = lines()
    assert line.startswith(f"POST {CHAT} name=m 200: model 'm' ended in the middle of its answer")


async def test_a_refusal_of_a_stream_that_has_begun_has_the_reason(lines: Any) -> None:
    async with gateway(preset("m", "load=0.4,fail-load=too big"), stream_open_after=0) as g:
        assert (await g.chat("m", stream=True)).status_code == 200
    (line,) = lines()
    assert line.startswith(f"POST {CHAT} name=m 200: ")
    assert "too big" in line


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (error_event(ServerFault("broken")), "broken"),
        (error_event(ServerFault("broken"), ANTHROPIC), "broken"),
        (error_event(ServerFault("broken"), OLLAMA), "broken"),
        (b'data: {"choices":[{"delta":{"content":"\\"error\\""}}]}\n\n', ""),
        (b'data: {"content":"an \\"error\\": x', ""),
        (b"data: [DONE]\n\n", ""),
        (b"", ""),
    ],
)
def test_the_error_at_the_end_of_a_workers_stream_is_found(last: bytes, message: str) -> None:
    assert failure_at_end(last) == message


async def test_a_client_that_leaves_while_its_model_loads_has_a_line(lines: Any) -> None:
    async with gateway(preset("m", "never-ready")) as g:
        waiting = asyncio.create_task(g.chat("m"))
        await _begins_loading(g)
        waiting.cancel()
        await asyncio.to_thread(wait_until, lines, "the line")
    assert lines() == [f"POST {CHAT} name=m 499: the client disconnected"]


async def _begins_loading(g: Gateway) -> None:
    await g.becomes("m", "loading")
