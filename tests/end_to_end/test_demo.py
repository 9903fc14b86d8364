"""The first steps of a new user: the gateway with the demo models, over plain HTTP and with the openai client."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from programs import Program, Programs


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    """Room for one model only, so that every change of model is an eviction."""
    return module_programs.gateway("--demo", "--models-max", "1")


@pytest.fixture
def openai(gateway: Program) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(gateway: Program, model: str, text: str, **fields: object) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    answer: dict[str, Any] = gateway.client.post("/v1/chat/completions", json=body).raise_for_status().json()
    return answer


def test_two_models_answer_in_turn_through_one_port(gateway: Program) -> None:
    assert gateway.status("demo-chat") == "unloaded"
    answer = chat(gateway, "demo-chat", "What is llama-corral?")
    assert answer["model"] == "demo-chat"
    (choice,) = answer["choices"]
    assert "llama-corral" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert (gateway.status("demo-chat"), gateway.status("demo-story")) == ("loaded", "unloaded")

    answer = chat(gateway, "campfire", "Tell me a story.", max_tokens=200)  # by its alias
    (choice,) = answer["choices"]
    assert len(choice["message"]["content"].split()) > 20
    assert (gateway.status("demo-chat"), gateway.status("demo-story")) == ("unloaded", "loaded")

    loaded = gateway.models()["demo-story"]
    assert loaded["aliases"] == ["campfire"]
    assert loaded["tags"] == ["chat", "demo"]
    assert loaded["meta"]["n_params"] > 500_000


def test_an_eviction_is_reported_in_the_event_stream(gateway: Program) -> None:
    chat(gateway, "demo-chat", "Hello!")
    seen: list[tuple[str, str]] = []
    with gateway.client.stream("GET", "/models/sse") as events:
        lines = events.iter_lines()
        chat_in_another_connection = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={"model": "demo-story", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]},
            timeout=60,
        )
        assert chat_in_another_connection.status_code == 200
        for line in lines:
            if line.startswith("data: ") and "status" in line:
                event = httpx.Response(200, content=line.removeprefix("data: ")).json()
                seen.append((event["model"], event.get("data", event)["status"]))
                if seen[-1] == ("demo-story", "loaded"):
                    break
    assert ("demo-chat", "unloaded") in seen
    assert ("demo-story", "loading") in seen


def test_openai_client(openai: OpenAI) -> None:
    names = {model.id for model in openai.models.list()}
    assert {"demo-chat", "demo-story", "demo-embed"} <= names
    answer = openai.chat.completions.create(
        model="demo-chat", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 3


def test_openai_client_streaming(openai: OpenAI) -> None:
    stream = openai.chat.completions.create(
        model="demo-chat",
        messages=[{"role": "user", "content": "Count to 5."}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "1, 2, 3, 4 and 5."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None


def test_openai_client_completion(openai: OpenAI) -> None:
    answer = openai.completions.create(model="demo-story", prompt="Once upon a time", max_tokens=12, temperature=0, n=2)
    assert len(answer.choices) == 2
    assert answer.choices[0].text == answer.choices[1].text != ""


def test_openai_client_embeddings(openai: OpenAI) -> None:
    texts = ["What sound does a cow make?", "What noise does the cow make?", "Name the capital of France."]
    answer = openai.embeddings.create(model="demo-embed", input=texts)
    first, same, other = (item.embedding for item in answer.data)
    assert math.isclose(sum(x * x for x in first), 1.0, rel_tol=1e-3)
    near, far = (sum(a * b for a, b in zip(first, v, strict=True)) for v in (same, other))
    assert near > 0.7 > 0.4 > far


def test_openai_client_unknown_model(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(model="demo-nothing", messages=[{"role": "user", "content": "Hi"}])
    assert "demo-nothing" in str(refused.value)


def test_a_conversation_uses_earlier_turns(gateway: Program) -> None:
    messages = [
        {"role": "user", "content": "My name is Clara."},
        {"role": "assistant", "content": "Nice to meet you, Clara!"},
        {"role": "user", "content": "What is my name?"},
    ]
    body = {"model": "demo-chat", "messages": messages, "temperature": 0}
    answer = gateway.client.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert "Clara" in answer["choices"][0]["message"]["content"]


def test_sleeping_and_waking(start_gateway: Callable[..., Program]) -> None:
    gateway = start_gateway("--demo", "--sleep-idle-seconds", "1")
    first = chat(gateway, "demo-chat", "Hello!")["choices"]
    gateway.wait_for_status("demo-chat", "sleeping")
    assert chat(gateway, "demo-chat", "Hello!")["choices"] == first
    assert gateway.status("demo-chat") == "loaded"
