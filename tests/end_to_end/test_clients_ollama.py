"""Ollama's client, sync and async, through the gateway and directly at a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import llama_corral.presets
import pytest
from media_files import png
from ollama import AsyncClient, Client, ResponseError
from programs import Program, Programs
from template_files import with_template_files

DEMO = Path(llama_corral.presets.__file__).parent / "demo"
PRESETS = f"""\
[demo-chat]
model = {DEMO}/demo-chat.gguf
alias = default
threads = 1

[demo-embed]
model = {DEMO}/demo-embed.gguf
embeddings = on
threads = 1

[caller]
model = {{models}}/tiny-llama.gguf
chat-template-file = CALLER
ctx-size = 2048
threads = 1

[seer]
model = {{models}}/tiny-gemma3.gguf
mmproj = {{models}}/mmproj-gemma3.gguf
ctx-size = 1024
parallel = 1
swa-full = on
threads = 1

[thinker]
model = {{models}}/tiny-llama.gguf
chat-template-file = THINKER
ctx-size = 2048
threads = 1
ttl = 3600
"""
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}


def look(eyes: int) -> str:
    """Looks.

    Args:
        eyes: How many.
    """
    return "a ship" * eyes


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    return module_programs.gateway("--models-max", "2", presets=with_template_files(PRESETS, module_programs.directory))


@pytest.fixture
def ollama(gateway: Program) -> Iterator[Client]:
    with Client(gateway.url, trust_env=False) as client:
        yield client


def expiry(client: Client, name: str) -> timedelta:
    (found,) = [model for model in client.ps().models if model.model == name]
    assert found.expires_at is not None
    return found.expires_at - datetime.now(UTC)


def test_models_are_listed_and_shown(ollama: Client) -> None:
    names = [model.model for model in ollama.list().models]
    listed = ("caller", "demo-chat", "default", "demo-embed", "seer", "thinker")
    assert names == [f"{name}:latest" for name in listed], "an alias follows its model"
    shown = ollama.show("demo-chat:latest")
    assert shown.capabilities == ["completion"]
    assert shown.details is not None
    assert shown.details.quantization_level == "Q8_0"
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    with pytest.raises(ResponseError, match="model 'other' not found") as caught:
        ollama.show("other")
    assert caught.value.status_code == 404


def test_chat(ollama: Client) -> None:
    whole = ollama.chat("demo-chat", CAPITAL, options=GREEDY)
    assert "Paris" in (whole.message.content or "")
    assert (whole.done_reason, whole.model) == ("stop", "demo-chat")
    parts = list(ollama.chat("demo-chat:latest", CAPITAL, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count
    assert (parts[-1].total_duration or 0) >= (parts[-1].eval_duration or 1)
    assert ollama.chat("default", CAPITAL, options={"num_predict": 1}).done_reason == "length"


def test_generate(ollama: Client) -> None:
    whole = ollama.generate("demo-chat", "What is the capital of France?", options=GREEDY)
    assert "Paris" in (whole.response or "")
    assert whole.context
    parts = ollama.generate("demo-chat", "What is the capital of France?", options=GREEDY, stream=True)
    assert "".join(part.response or "" for part in parts) == whole.response
    raw = ollama.generate("demo-chat", "Paris", raw=True, options={"num_predict": 2}, logprobs=True, top_logprobs=2)
    assert raw.logprobs is not None
    assert [len(entry.top_logprobs or ()) for entry in raw.logprobs] == [2, 2]
    assert ollama.generate("demo-chat").done_reason == "load"


def test_structured_output(ollama: Client) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    said = ollama.chat("demo-chat", CAPITAL, format=schema, options=GREEDY).message.content
    assert said is not None
    assert said.replace(" ", "") in ('{"city":"Paris"}', '{"city":"Rome"}')


def test_tools_are_offered_called_and_answered(ollama: Client, gateway: Program) -> None:
    offered = ollama.chat("caller", CAPITAL, tools=[look], options={"num_predict": 4})
    assert offered.message.role == "assistant"
    tool: Any = {
        "type": "function",
        "function": {"name": "look", "parameters": {"properties": {"eyes": {"enum": [2]}}}},
    }
    body = {"model": "caller", "messages": CAPITAL, "tools": [tool], "tool_choice": "required", "stream": False}
    body["options"] = {"temperature": 0, "num_predict": 400}
    message = gateway.client.post("/api/chat", json=body).json()["message"]
    (call, *_) = message["tool_calls"]
    assert call["function"]["name"] == "look"
    assert call["function"]["arguments"] in ({}, {"eyes": 2})
    history = [*CAPITAL, message, {"role": "tool", "tool_name": "look", "content": look(2)}]
    later = ollama.chat("caller", history, tools=[look], options={"num_predict": 4})
    assert later.done_reason == "length"


def test_thinking(ollama: Client) -> None:
    thinking = ollama.chat("thinker", CAPITAL, think=True, options={"num_predict": 5}).message
    assert thinking.thinking
    assert not thinking.content
    parts = ollama.chat("thinker", CAPITAL, options={"num_predict": 5}, stream=True)
    assert "".join(part.message.thinking or "" for part in parts)
    silent = ollama.chat("thinker", CAPITAL, think=False, options={"num_predict": 5}).message
    assert silent.content
    assert not silent.thinking
    with pytest.raises(ResponseError, match="does not support thinking"):
        ollama.chat("demo-chat", CAPITAL, think=True)


def test_embeddings(ollama: Client) -> None:
    found = ollama.embed("demo-embed", ["a cat", "a dog"])
    assert len(found.embeddings) == 2
    assert len(ollama.embeddings("demo-embed", "a cat").embedding) == len(found.embeddings[0])
    assert len(ollama.embed("demo-embed", "a cat", dimensions=8).embeddings[0]) == 8
    with pytest.raises(ResponseError, match="--embeddings"):
        ollama.embed("demo-chat", "a cat")


def test_keep_alive(ollama: Client, gateway: Program) -> None:
    ollama.chat("thinker", CAPITAL, options={"num_predict": 1})
    assert timedelta(minutes=50) < expiry(ollama, "thinker:latest") < timedelta(minutes=61)
    ollama.chat("thinker", CAPITAL, options={"num_predict": 1}, keep_alive="10m")
    assert timedelta(minutes=9) < expiry(ollama, "thinker:latest") < timedelta(minutes=11)
    ollama.chat("thinker", CAPITAL, options={"num_predict": 1}, keep_alive=-1)
    ollama.generate("demo-chat", "x", options={"num_predict": 1}, keep_alive=-1)
    assert expiry(ollama, "thinker:latest") > timedelta(days=9999)
    assert ollama.embed("demo-embed", "x").embeddings, "no model is locked out: the least recently used one is unloaded"
    assert {model.model for model in ollama.ps().models} == {"demo-chat:latest", "demo-embed:latest"}
    assert ollama.generate("demo-chat", keep_alive=0).done_reason == "unload"
    assert ollama.embed("demo-embed", "x", keep_alive=0).embeddings
    ollama.chat("thinker", keep_alive=0)
    for name in ("demo-chat", "demo-embed", "thinker"):
        gateway.wait_for_status(name, "unloaded")
    assert not ollama.ps().models


def test_images(ollama: Client) -> None:
    assert "vision" in (ollama.show("seer").capabilities or [])
    seen = [{"role": "user", "content": "What is this?", "images": [png(seed=1)]}]
    first = ollama.chat("seer", seen, options={**GREEDY, "num_predict": 4})
    without = ollama.chat("seer", [{"role": "user", "content": "What is this?"}], options={"num_predict": 1})
    assert (first.prompt_eval_count or 0) > (without.prompt_eval_count or 0) + 10
    again = ollama.generate("seer", "What is this?", images=[png(seed=1)], options={**GREEDY, "num_predict": 4})
    assert (again.response, again.context) == (first.message.content, None)
    raw = ollama.generate("seer", "What is this?", images=[png(seed=1)], raw=True, options={"num_predict": 1})
    assert (raw.prompt_eval_count or 0) > 10
    with pytest.raises(ResponseError, match="cannot be combined"):
        ollama.generate("seer", "x", images=[png(seed=1)], context=[5, 6])


async def test_async_client(gateway: Program) -> None:
    async with AsyncClient(gateway.url, trust_env=False) as client:
        whole, vectors = await asyncio.gather(
            client.chat("demo-chat", CAPITAL, options=GREEDY), client.embed("demo-embed", ["a", "b"])
        )
        assert "Paris" in (whole.message.content or "")
        assert len(vectors.embeddings) == 2
        parts = [part async for part in await client.generate("demo-chat", "Hello", stream=True)]
        assert parts[-1].done
        assert {model.model for model in (await client.ps()).models} == {"demo-chat:latest", "demo-embed:latest"}


def test_directly_at_a_worker(programs: Programs) -> None:
    program = programs.worker("--alias", "demo-chat", model=str(DEMO / "demo-chat.gguf"))
    with Client(program.url, trust_env=False) as client:
        assert [model.model for model in client.list().models] == ["demo-chat:latest"]
        assert client.show("demo-chat").capabilities == ["completion"]
        assert "Paris" in (client.chat("demo-chat", CAPITAL, options=GREEDY).message.content or "")
        assert list(client.generate("demo-chat", "Hello", stream=True))[-1].done
        assert [model.context_length for model in client.ps().models] == [1024]
        with pytest.raises(ResponseError, match="one model"):
            client.pull("other")
