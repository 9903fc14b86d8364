"""Test Ollama's endpoints at the router with fake workers: model names, keep_alive, lists and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.router.proxy.model_field import OllamaTarget, ollama_in_json
from router_http import Gateway, gateway
from router_tools import preset


async def ask(it: Gateway, verb: str, **body: Any) -> httpx.Response:
    return await it.client.post(f"/api/{verb}", json=body)


async def running(it: Gateway) -> dict[str, Any]:
    return {entry["name"]: entry for entry in (await it.client.get("/api/ps")).json()["models"]}


@pytest.mark.parametrize(
    ("body", "target"),
    [
        (b"", OllamaTarget()),
        (b"[1]", OllamaTarget()),
        (b'{"name": "a"}', OllamaTarget("a")),
        (b'{"model": "a", "keep_alive": 0}', OllamaTarget("a", 0, True)),
        (b'{"model": "a", "keep_alive": "0s", "messages": [ ], "prompt": ""}', OllamaTarget("a", 0, True)),
        (b'{"model": "a", "keep_alive": "0", "prompt": "  "}', OllamaTarget("a", 0, False)),
        (b'{"model": "a", "keep_alive": "5m", "messages": [{}]}', OllamaTarget("a", 300, False)),
        (b'{"model": "a", "keep_alive": -1}', OllamaTarget("a", -1, False)),
        (b'{"model": "a", "keep_alive": null, "input": ["x"]}', OllamaTarget("a", None, False)),
        (b'{"model": "a", "ttl": 60, "prompt": "x"}', OllamaTarget("a", 60, False)),
        (b'{"model": "a", "ttl": 0}', OllamaTarget("a", 0, True)),
        (b'{"model": "a", "keep_alive": "5m", "ttl": 60, "prompt": "x"}', OllamaTarget("a", 300, False)),
        (b'{"model": 5, "keep_alive": 0, "input": ["x"]}', OllamaTarget("", 0, False)),
    ],
)
def test_fields_read_from_a_body(body: bytes, target: OllamaTarget) -> None:
    assert ollama_in_json(body) == target


@given(st.binary())
def test_any_body_is_parsed_or_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        ollama_in_json(body)


async def test_bodies_are_forwarded_for_names_with_tags() -> None:
    async with gateway(preset("a", aliases=("b",)), preset("me/repo:Q4_K_M")) as it:
        for name in ("a", "a:latest", "b", "b:latest"):
            response = await ask(it, "embed", model=name, input="x")
            assert response.json()["worker"]["name"] == "a"
            assert json.loads(response.json()["body"]) == {"model": name, "input": "x"}
        for name in ("me/repo", "hf.co/me/repo:q4_k_m", "me/repo:latest"):
            assert (await ask(it, "chat", model=name)).json()["worker"]["name"] == "me/repo:Q4_K_M"
        assert (await it.chat("a:latest")).status_code == 200, "names of Ollama's list are accepted in any dialect"
        response = await ask(it, "chat", model="a:8b")
        assert (response.status_code, response.json()) == (404, {"error": "model 'a:8b' not found"})
        response = await ask(it, "generate", prompt="x")
        assert response.status_code == 400
        assert set(response.json()) == {"error"}


async def test_keep_alive_sets_how_long_a_model_is_kept() -> None:
    async with gateway(preset("a", ttl=60.0)) as it:
        assert await running(it) == {}
        await ask(it, "chat", model="a")
        soon = (await running(it))["a:latest"]["expires_at"]
        await ask(it, "chat", model="a", keep_alive="1h")
        later = (await running(it))["a:latest"]
        assert later["expires_at"] > soon
        assert later["context_length"] == 512
        await ask(it, "chat", model="a", keep_alive=-1)
        assert (await running(it))["a:latest"]["expires_at"] > "2100"
        await ask(it, "generate", model="a", prompt="x", keep_alive=0)
        await it.becomes("a", "unloaded")
        assert await running(it) == {}


async def test_keep_alive_zero_without_a_prompt_unloads_the_model() -> None:
    async with gateway(preset("a", pin=True)) as it:
        await ask(it, "chat", model="a")
        response = await ask(it, "chat", model="a:latest", keep_alive=0, messages=[])
        told = response.json()
        assert (told["model"], told["done"], told["done_reason"]) == ("a:latest", True, "unload")
        assert told["message"] == {"role": "assistant", "content": ""}
        await it.becomes("a", "unloaded")
        assert (await ask(it, "generate", model="a", keep_alive=0)).json()["response"] == ""
        assert (await it.status("a"))["value"] == "unloaded", "for that it need not be loaded"
        assert (await ask(it, "embed", model="a", keep_alive=0)).json()["embeddings"] == []


async def test_if_pinned_models_use_models_max_others_are_refused_immediately() -> None:
    async with gateway(preset("a", pin=True), preset("b"), models_max=1) as it:
        await ask(it, "chat", model="a")
        response = await ask(it, "chat", model="b")
        assert response.status_code == 503
        assert response.json() == {
            "error": "model 'b' cannot be loaded: pinned models use all 1 places (--models-max): a"
        }
        assert "Retry-After" not in response.headers
        assert response.headers["X-Should-Retry"] == "false"
        response = await it.chat("b")
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "unavailable_error"
        await ask(it, "generate", model="a", keep_alive=0)
        assert (await ask(it, "chat", model="b")).status_code == 200


async def test_no_request_pins_a_model() -> None:
    async with gateway(preset("a"), preset("b"), models_max=1) as it:
        for keep_alive in (-1, "-1s", "-5m", 1e300):
            assert (await ask(it, "chat", model="a", keep_alive=keep_alive)).status_code == 200
            assert (await ask(it, "chat", model="b")).status_code == 200


@pytest.mark.parametrize("name", ["a", "a:latest", "b", "b:latest", "c:8b", "me/repo", "hf.co/me/repo:q4_k_m"])
async def test_a_model_that_is_here_needs_no_download(name: str) -> None:
    async with gateway(preset("a", aliases=("b", "c:8b")), preset("me/repo:Q4_K_M")) as it:
        response = await ask(it, "pull", model=name)
        assert [json.loads(line) for line in response.text.splitlines()] == [{"status": "success"}]
        assert (await ask(it, "pull", name=name, stream=False)).json() == {"status": "success"}
        assert (await ask(it, "pull", model="nothing")).status_code == 400


async def test_a_model_that_cannot_be_loaded_is_not_pulled_with_success() -> None:
    async with gateway(
        preset("a"), preset("x", aliases=("y",), unavailable="presets.ini:3: unknown key 'modle'")
    ) as it:
        for name in ("x", "x:latest"):
            response = await ask(it, "pull", model=name, stream=False)
            assert response.status_code == 500
            assert response.json() == {"error": "model 'x' cannot be loaded: presets.ini:3: unknown key 'modle'"}


@pytest.mark.parametrize("name", ["ME/repo:q4_k_m", "hf.co/me/Repo:Q4_K_M", "me/REPO"])
async def test_a_repository_is_one_model_in_upper_and_lower_case(name: str) -> None:
    one, other = {"hf_repo": "Me/Repo:Q4_K_M"}, {"hf_repo": "me/repo"}
    async with gateway(preset("Me/Repo:Q4_K_M", options=one), preset("me/repo", options=other)) as it:
        assert (await ask(it, "pull", model=name, stream=False)).json() == {"status": "success"}
        served = await it.chat(name.removeprefix("hf.co/"))
        assert served.status_code == 200
        refused = await it.client.delete("/models", params={"model": name})
        assert refused.status_code == 404, "a file is only deleted under its exact name"


async def test_lists_and_versions() -> None:
    async with gateway(preset("a", options={"temperature": "0.3"}), preset("b", hidden=True)) as it:
        (entry,) = (await it.client.get("/api/tags")).json()["models"]
        assert (entry["name"], entry["size"], entry["digest"]) == ("a:latest", 0, "")
        assert "version" in (await it.client.get("/api/version")).json()
        shown = (await ask(it, "show", model="a")).json()
        assert shown["parameters"].split() == ["temperature", "0.3"]
        assert (await ask(it, "show", model="c")).status_code == 404
        assert (await it.client.head("/")).status_code == 200


async def test_refusals_give_their_reason() -> None:
    async with gateway(preset("a"), api_key=("secret",)) as it:
        response = await ask(it, "chat", model="a")
        assert (response.status_code, response.json()) == (401, {"error": "Invalid API Key"})
    async with gateway(preset("a"), preset("broken", "fail-load=no such file")) as it:
        for verb in ("push", "create", "copy"):
            response = await ask(it, verb, model="a")
            assert response.status_code == 501
            assert response.json()["error"].startswith(f"/api/{verb}: ")
        response = await ask(it, "chat", model="broken")
        assert response.status_code == 500
        assert "no such file" in response.json()["error"]
        response = await it.client.post("/api/chat", content=b"{")
        assert response.status_code == 400
        assert "JSON" in response.json()["error"]
        response = await ask(it, "chat", model="a", keep_alive="soon")
        assert response.status_code == 400
        assert (await it.status("a"))["value"] == "unloaded"


async def test_many_clients_with_different_keep_alive_are_all_served() -> None:
    async with gateway(preset("a"), preset("b"), models_max=1) as it:
        wishes = [0, "5m", None, 1] * 5
        asked = [
            ask(it, "generate", model="ab"[number % 2], prompt="x", keep_alive=wish)
            for number, wish in enumerate(wishes)
        ]
        assert {response.status_code for response in await asyncio.gather(*asked)} == {200}
