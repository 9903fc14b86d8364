"""The calls of real clients, in their order, against a router with one place and fake workers.

They were read from the clients' sources or recorded: pi's llama.cpp provider, Codex with a local Ollama, Home
Assistant, LangChain, Open WebUI and LM Studio's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from router_http import Gateway, gateway
from router_tools import PATIENCE, preset

MODELS = (preset("small"), preset("coder", "load=0.2", aliases=("gpt-oss:20b", "llama3.2")))
CODEX_NEEDS = (0, 13, 4)


@pytest.fixture
async def it() -> AsyncIterator[Gateway]:
    """A router that has loaded `small` for a client that wants it to be kept forever."""
    async with gateway(*MODELS, models_max=1) as running:
        assert (await ollama_chat(running, "small", keep_alive=-1)).status_code == 200
        yield running


async def ollama_chat(it: Gateway, model: str, **given: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **given}
    return await it.client.post("/api/chat", json=body)


async def states(it: Gateway) -> dict[str, str]:
    entries = (await it.client.get("/models")).json()["data"]
    return {entry["id"]: entry["status"]["value"] for entry in entries}


async def listed(it: Gateway) -> list[str]:
    return [entry["model"] for entry in (await it.client.get("/api/tags")).json()["models"]]


# -- pi --------------------------------------------------------------------------------------------------------------


class Pi:
    """pi's `/llama`: it takes every event that says `unloaded` for a failure of the load that it waits for."""

    def __init__(self, it: Gateway) -> None:
        self._it = it
        self.failure = ""

    async def load_and_wait(self, model: str) -> None:
        listening = asyncio.Event()
        watching = asyncio.create_task(self._watch(model, listening))
        try:
            await listening.wait()
            response = await self._it.client.post("/models/load", json={"model": model})
            assert response.status_code == 200, response.text
            async with asyncio.timeout(PATIENCE):
                while (await states(self._it))[model] != "loaded":
                    assert not self.failure
                    await asyncio.sleep(0.02)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def unload_and_wait(self, model: str) -> None:
        response = await self._it.client.post("/models/unload", json={"model": model})
        assert response.status_code == 200, response.text
        await self._it.becomes(model, "unloaded")

    async def _watch(self, model: str, listening: asyncio.Event) -> None:
        async with self._it.client.stream("GET", "/models/sse") as response:
            async for line in response.aiter_lines():
                listening.set()
                event = json.loads(line[5:]) if line.startswith("data:") else {}
                if event.get("model") == model and event["event"] in ("model_status", "status_change"):
                    self.failure = "Model failed to load" if event["data"]["status"] == "unloaded" else ""


async def test_pi_loads_models_one_after_the_other(it: Gateway) -> None:
    pi = Pi(it)
    assert (await it.client.get("/props")).json()["models_autoload"] is True
    assert await states(it) == {"coder": "unloaded", "small": "loaded"}
    for model in ("coder", "small", "coder"):
        await pi.load_and_wait(model)
        assert not pi.failure
        props = await it.client.get("/props", params={"model": model, "autoload": "false"})
        assert props.status_code == 200
    await pi.unload_and_wait("coder")
    await pi.load_and_wait("coder")
    assert not pi.failure


# -- Ollama's clients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "is_listed"), [("gpt-oss:20b", True), ("coder:latest", True), ("coder", False)])
async def test_codex_finds_its_model_and_uses_it(it: Gateway, model: str, is_listed: bool) -> None:
    version = (await it.client.get("/api/version")).json()
    assert tuple(map(int, version["version"].split("."))) >= CODEX_NEEDS
    assert set(version) == {"version", "commit", "build_date"}, "LlamaSwap's clients ask the same path"
    assert (model in await listed(it)) is is_listed
    if not is_listed:
        async with it.client.stream("POST", "/api/pull", json={"model": model, "stream": True}) as pulled:
            assert pulled.status_code == 200
            assert [json.loads(line) async for line in pulled.aiter_lines()] == [{"status": "success"}]
    body = {"model": model, "input": [], "stream": True}
    assert (await it.client.post("/v1/responses", json=body)).status_code == 200
    assert await states(it) == {"coder": "loaded", "small": "unloaded"}


async def test_home_assistant_keeps_its_model_without_locking_out_others(it: Gateway) -> None:
    names = await listed(it)
    assert "llama3.2:latest" in names
    assert (await it.client.post("/api/pull", json={"model": "llama3.2:latest", "stream": False})).status_code == 200
    for model in ("llama3.2:latest", "small:latest", "llama3.2:latest"):
        asked = await ollama_chat(it, model, stream=True, keep_alive="-1s", options={"num_ctx": 8192}, tools=[])
        assert asked.status_code == 200
        (running,) = (await it.client.get("/api/ps")).json()["models"]
        assert running["expires_at"] > "2100"
    assert (await it.chat("small")).status_code == 200
    assert (await it.client.post("/models/load", json={"model": "coder"})).status_code == 200


async def test_langchain_finds_the_names_that_its_users_write(it: Gateway) -> None:
    names = await listed(it)
    for model in ("coder", "llama3.2", "gpt-oss:20b", "gpt-oss", "small"):
        assert any(name == model or name.startswith(f"{model}:") for name in names)
    for model in ("coder", "llama3.2", "gpt-oss:20b"):
        assert (await ollama_chat(it, model, stream=True)).status_code == 200


async def test_open_webui_shows_and_switches_models(it: Gateway) -> None:
    assert "version" in (await it.client.get("/api/version")).json()
    assert {"coder:latest", "gpt-oss:20b", "llama3.2:latest", "small:latest"} == set(await listed(it))
    shown = (await it.client.get("/models")).json()["data"]
    assert all(entry["status"]["value"] in ("loaded", "unloaded") for entry in shown)
    assert (await it.client.post("/models/unload", json={"model": "small"})).json() == {"success": True}
    assert (await it.client.post("/models/load", json={"model": "small"})).json() == {"success": True}, "at once"
    await it.becomes("small", "loaded")
    assert (await it.client.post("/models/load", json={"model": "coder"})).json() == {"success": True}
    await it.becomes("coder", "loaded")
    assert (await it.client.post("/api/show", json={"model": "llama3.2"})).status_code == 200


# -- fields of other dialects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expires_in"), [({"ttl": 300}, 300), ({"keep_alive": "2m", "ttl": 9}, 120), ({"keep_alive": 60}, 60)]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"])
async def test_every_dialect_may_say_how_long_the_model_is_kept(
    it: Gateway, path: str, given: dict[str, Any], expires_in: float
) -> None:
    assert (await it.client.post(path, json={"model": "coder", **given})).status_code == 200
    assert (await it.status("coder"))["expires_in"] == pytest.approx(expires_in, abs=5)


async def test_a_form_may_say_how_long_the_model_is_kept_too(it: Gateway) -> None:
    form = {"model": "coder", "ttl": "300"}
    await it.client.post("/v1/audio/transcriptions", data=form, files={"file": b"\0"})
    assert (await it.status("coder"))["expires_in"] == pytest.approx(300, abs=5)


async def test_the_shown_state_says_what_is_kept_and_what_is_pinned() -> None:
    async with gateway(preset("a", pin=True), preset("b"), preset("c", ttl=60.0)) as it:
        for model in "abc":
            await it.chat(model)
        await it.chat("b", keep_alive=-1)
        status = {model: await it.status(model) for model in "abc"}
    shown = {model: (said["pinned"], said["kept"], said["expires_in"] is None) for model, said in status.items()}
    assert shown == {"a": (True, False, True), "b": (False, True, True), "c": (False, False, False)}


async def test_an_invalid_time_is_refused_and_nothing_is_loaded(it: Gateway) -> None:
    response = await it.chat("coder", ttl="soon")
    assert response.status_code == 400
    assert "ttl: expected seconds" in response.json()["error"]["message"]
    assert (await states(it))["coder"] == "unloaded"


# -- requests without a model ----------------------------------------------------------------------------------------


async def test_requests_that_name_no_model_are_for_the_default_model() -> None:
    async with gateway(*MODELS, default_model="gpt-oss:20b") as it:
        for path in ("/v1/embeddings", "/v1/responses", "/v1/messages", "/api/generate", "/infill"):
            response = await it.client.post(path, json={"input": "x", "prompt": "x"})
            assert response.json()["worker"]["name"] == "coder", path
        echoed = await it.client.post("/v1/embeddings", json={"input": "x"})
        assert json.loads(echoed.json()["body"]) == {"input": "x"}, "a worker needs no name"
        form = await it.client.post("/v1/audio/transcriptions", files={"file": b"\0"})
        assert form.json()["worker"]["name"] == "coder"
        named = await it.client.post("/v1/embeddings", json={"input": "x", "model": "small"})
        assert named.json()["worker"]["name"] == "small"
        assert (await it.client.post("/v1/embeddings", json={"model": "none"})).status_code == 400
        assert (await it.client.get("/props")).json()["role"] == "router"
        unload = await it.client.post("/api/generate", json={"keep_alive": 0})
        assert (unload.status_code, "model name is missing" in unload.text) == (400, True)
        assert (await it.client.post("/models/unload", json={})).status_code == 400
        assert (await states(it))["coder"] == "loaded"


async def test_a_look_at_the_default_model_does_not_load_it() -> None:
    async with gateway(*MODELS, default_model="coder") as it:
        refused = await it.client.get("/metrics")
        assert (refused.status_code, "model is not loaded" in refused.text) == (400, True)
        assert await states(it) == {"coder": "unloaded", "small": "unloaded"}
        await it.chat("coder")
        assert (await it.client.get("/metrics")).json()["worker"]["name"] == "coder"


async def test_without_a_default_model_they_are_refused(it: Gateway) -> None:
    response = await it.client.post("/v1/embeddings", json={"input": "x"})
    assert response.status_code == 400
    assert "model name is missing" in response.text


async def test_a_default_model_that_does_not_exist_is_named_in_the_refusal() -> None:
    async with gateway(*MODELS, default_model="none") as it:
        response = await it.client.post("/v1/embeddings", json={"input": "x"})
        assert response.status_code == 400
        assert "model 'none' not found" in response.text
