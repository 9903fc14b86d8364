"""OpenAI's client, sync and async, with the gateway: usual requests and errors."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from aiohttp import web
from llama_corral.common.web.application import add_routes, application
from llama_corral.common.web.listen import listen
from llama_corral.presets.options.settings import Settings
from openai import AsyncOpenAI, OpenAI
from programs import Program, Programs, free_port
from pydantic import BaseModel
from response_events import kinds
from template_files import CALLER

USER: Any = {"role": "user", "content": "Hi"}
ASKED: Any = {"messages": [USER], "temperature": 0}


class State(BaseModel):
    """What a tool is called with, or an answer is."""

    on: bool
    n: Literal[1, 2]


SWITCH: Any = openai.pydantic_function_tool(State, name="switch", description="Switches it.")


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    """A tiny model with a tool template, one for embeddings, and one that cannot be loaded."""
    source = module_programs.directory / "tools.jinja"
    source.write_text(CALLER)
    (module_programs.directory / "broken.gguf").write_text("no model")
    presets = f"""
[*]
threads = 1
parallel = 2
ctx-size = 2048

[tools]
model = {{models}}/tiny-llama.gguf
chat-template-file = {source}

[embed]
model = {{models}}/tiny-bert.gguf
embeddings = true

[broken]
model = {module_programs.directory}/broken.gguf
"""
    return module_programs.gateway(presets=presets)


@pytest.fixture
def client(gateway: Program) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


# -- chat ------------------------------------------------------------------------------------------------------------


def test_the_fields_of_an_answer(client: OpenAI) -> None:
    asked: Any = {**ASKED, "seed": 5, "n": 2, "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(model="tools", user="u", extra_body={"no_such_field": [1]}, **asked)
    assert answer.object == "chat.completion"
    assert answer.model == "tools"
    assert answer.system_fingerprint
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None
    probs = answer.choices[0].logprobs
    assert probs is not None
    assert probs.content is not None
    assert [len(entry.top_logprobs) for entry in probs.content] == [3] * 4
    assert "".join(entry.token for entry in probs.content) == answer.choices[0].message.content


def test_a_stream_adds_up_to_the_answer(client: OpenAI) -> None:
    asked: Any = {**ASKED, "max_tokens": 6}
    whole = client.chat.completions.create(model="tools", **asked).choices[0]
    chunks = list(client.chat.completions.create(model="tools", stream=True, **asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage is None
    counted = list(
        client.chat.completions.create(model="tools", stream=True, stream_options={"include_usage": True}, **asked)
    )
    assert counted[-1].choices == []
    assert counted[-1].usage is not None
    assert counted[-1].usage.completion_tokens == 6


def test_the_same_seed_gives_the_same_answer(client: OpenAI) -> None:
    def said(seed: int) -> str | None:
        asked: Any = {"messages": [USER], "temperature": 1.5, "max_tokens": 12, "seed": seed}
        return client.chat.completions.create(model="tools", **asked).choices[0].message.content

    assert said(1) == said(1) != said(2)


def test_a_required_call_and_its_result(client: OpenAI) -> None:
    asked: Any = {**ASKED, "tools": [SWITCH], "max_tokens": 300}
    answer = client.chat.completions.create(
        model="tools", tool_choice="required", parallel_tool_calls=False, **asked
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls
    (call,) = answer.message.tool_calls
    assert call.type == "function"
    State.model_validate_json(call.function.arguments)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    asked["messages"] = [USER, answer.message, result]
    asked["max_tokens"] = 3
    assert client.chat.completions.create(model="tools", **asked).choices[0].message.content


def test_parallel_calls_are_streamed_one_after_the_other(client: OpenAI) -> None:
    """A random model never ends its turn while the grammar allows more, so the limit ends it."""
    asked: Any = {**ASKED, "tools": [SWITCH], "tool_choice": "required", "parallel_tool_calls": True}
    body = {"ignore_eos": True}
    whole = client.chat.completions.create(model="tools", max_tokens=400, extra_body=body, **asked).choices[0]
    calls: dict[int, dict[str, str]] = {}
    for chunk in client.chat.completions.create(model="tools", max_tokens=400, extra_body=body, stream=True, **asked):
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.function is not None
            if part.index not in calls:
                assert part.index == len(calls)
                calls[part.index] = {"id": part.id or "", "name": part.function.name or "", "arguments": ""}
            calls[part.index]["arguments"] += part.function.arguments or ""
    assert whole.message.tool_calls
    assert len(calls) == len(whole.message.tool_calls) > 1
    assert len({call["id"] for call in calls.values()}) == len(calls)
    for number, call in enumerate(whole.message.tool_calls):
        assert call.type == "function"
        assert calls[number]["arguments"] == call.function.arguments
        if number + 1 < len(calls):
            State.model_validate_json(call.function.arguments)


def test_parsed_answers_and_calls(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model="tools", response_format=State, max_tokens=300, **ASKED)
    assert isinstance(parsed.choices[0].message.parsed, State)
    called = client.chat.completions.parse(
        model="tools", tools=[SWITCH], tool_choice="required", parallel_tool_calls=False, max_tokens=300, **ASKED
    )
    assert called.choices[0].message.tool_calls
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, State)


def test_the_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tools", response_format=State, max_tokens=300, **ASKED) as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, State)
    assert {"chunk", "content.delta", "content.done"} <= set(seen)
    with client.chat.completions.stream(
        model="tools", tools=[SWITCH], tool_choice="required", parallel_tool_calls=False, max_tokens=300, **ASKED
    ) as calling:
        done = [event for event in calling if event.type == "tool_calls.function.arguments.done"]
    assert isinstance(done[0].parsed_arguments, State)


# -- responses -------------------------------------------------------------------------------------------------------


def test_responses(client: OpenAI) -> None:
    first = client.responses.create(model="tools", input="Hi", max_output_tokens=3, temperature=0)
    assert first.output_text
    second = client.responses.create(
        model="tools", input="And?", previous_response_id=first.id, max_output_tokens=3, temperature=0
    )
    assert client.responses.retrieve(second.id) == second
    assert len(client.responses.input_items.list(second.id, limit=1).data) == 1
    assert kinds(client.responses.input_items.list(second.id, limit=1)) == ["message"] * 3
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="tools", input="And?", previous_response_id=second.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    assert client.responses.input_tokens.count(model="tools", input="Hi").input_tokens > 0


FLAT: Any = {"type": "function", **SWITCH["function"]}
REQUIRED: Any = {"tools": [FLAT], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 300}


def test_responses_with_calls(client: OpenAI) -> None:
    first = client.responses.create(model="tools", input="Hi", temperature=0, **REQUIRED)
    (call,) = first.output
    assert call.type == "function_call"
    State.model_validate_json(call.arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    asked: Any = {"model": "tools", "temperature": 0, "max_output_tokens": 3, "tools": [FLAT]}
    later = client.responses.create(input=[result], previous_response_id=first.id, **asked)
    assert later.output_text
    said: Any = {"role": "user", "content": "Hi"}
    own = client.responses.create(input=[said, call.model_dump(), result], store=False, **asked)
    assert own.output_text == later.output_text


def test_responses_streamed(client: OpenAI) -> None:
    with client.responses.stream(model="tools", input="Hi", max_output_tokens=5, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert (final.output_text, final.status) == (text, "incomplete")
    with client.responses.stream(model="tools", input="Hi", temperature=0, **REQUIRED) as calling:
        deltas = [event for event in calling if event.type == "response.function_call_arguments.delta"]
        (call,) = calling.get_final_response().output
    assert call.type == "function_call"
    assert deltas[-1].snapshot == call.arguments


def test_responses_parsed(client: OpenAI) -> None:
    asked: Any = {"model": "tools", "input": "Hi", "temperature": 0, "max_output_tokens": 300, "text_format": State}
    assert isinstance(client.responses.parse(**asked).output_parsed, State)
    with client.responses.stream(**asked) as stream:
        assert isinstance(stream.get_final_response().output_parsed, State)


# -- the rest --------------------------------------------------------------------------------------------------------


def test_completions(client: OpenAI) -> None:
    asked: Any = {"model": "tools", "prompt": "Once", "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(logprobs=2, **asked)
    (choice,) = whole.choices
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or ()) == choice.text
    assert len(choice.logprobs.token_logprobs or ()) == 4
    assert {len(top) for top in choice.logprobs.top_logprobs or ()} <= {1, 2}
    chunks = list(client.completions.create(stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    several = client.completions.create(**{**asked, "prompt": ["Once", "Twice"]})
    assert [choice.index for choice in several.choices] == [0, 1]


def test_embeddings_in_both_encodings(client: OpenAI) -> None:
    usual = client.embeddings.create(model="embed", input=["one", "two"])  # requests base64
    plain = client.embeddings.create(model="embed", input=["one", "two"], encoding_format="float")
    for one, other in zip(usual.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)
    assert usual.usage.prompt_tokens > 0


async def test_concurrent_requests_with_the_async_client(gateway: Program) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:

        async def chat() -> str:
            stream = await client.chat.completions.create(model="tools", stream=True, max_tokens=5, **ASKED)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def respond() -> str:
            async with client.responses.stream(model="tools", input="Hi", max_output_tokens=5, temperature=0) as stream:
                return (await stream.get_final_response()).output_text

        async def embed() -> int:
            return len((await client.embeddings.create(model="embed", input="x")).data)

        said = await asyncio.gather(chat(), respond(), chat(), embed(), respond())
        assert said[0] == said[1] == said[2] == said[4]
        models = [model.id async for model in client.models.list()]
        assert {"tools", "embed", "broken"} <= set(models)


# -- errors ----------------------------------------------------------------------------------------------------------


def attempts(gateway: Program, work: Any, error: type[openai.APIStatusError]) -> tuple[openai.APIStatusError, int]:
    """Return the client's final error and the number of its requests."""
    sent: list[httpx.Request] = []
    http = httpx.Client(event_hooks={"request": [sent.append]}, trust_env=False)
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=2, http_client=http) as client:
        with pytest.raises(error) as refused:
            work(client)
        return refused.value, len(sent)


def test_permanent_errors_are_not_retried(gateway: Program) -> None:
    def chat(**fields: Any) -> Any:
        return lambda client: client.chat.completions.create(**{"model": "tools", **ASKED, **fields})

    wrong, n = attempts(gateway, chat(temperature="hot"), openai.BadRequestError)
    assert (wrong.param, wrong.type, n) == ("temperature", "invalid_request_error", 1)
    unknown, n = attempts(gateway, chat(model="nobody"), openai.BadRequestError)
    assert ("nobody" in unknown.message, n) == (True, 1)
    long, n = attempts(gateway, chat(messages=[{"role": "user", "content": "word " * 5000}]), openai.BadRequestError)
    assert (long.type, n) == ("exceed_context_size_error", 1)
    assert (
        attempts(
            gateway, lambda client: client.embeddings.create(model="tools", input="x"), openai.InternalServerError
        )[1]
        == 1
    )
    failed, n = attempts(gateway, chat(model="broken"), openai.InternalServerError)
    assert ("broken" in failed.message, n) == (True, 1)
    assert attempts(gateway, lambda client: client.get("/nowhere", cast_to=object), openai.NotFoundError)[1] == 1


UNKNOWN: Any = {
    "client_metadata": {"x-codex-installation-id": "1"},
    "prompt_cache_key": "k",
    "prompt_cache_retention": None,
    "chat_id": "c",
    "features": {"web_search": False},
    "params": {},
    "nobody knows": [None, {"": 1}],
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [USER], "max_tokens": 3}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 3}),
        ("/completion", {"prompt": "a", "n_predict": 3}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 3}),
        ("/api/chat", {"messages": [USER], "options": {"num_predict": 3, "nobody": 1, "temperature": 0}}),
        ("/v1/embeddings", {"input": "a"}),
        ("/tokenize", {"content": "a"}),
    ],
)
def test_unknown_fields_are_ignored(gateway: Program, path: str, body: Any) -> None:
    asked = {"model": "embed" if "embed" in path else "tools", "temperature": 0, "seed": 1, "stream": False, **body}

    def answer(**more: Any) -> Any:
        response = gateway.client.post(path, json=asked | more)
        assert response.status_code == 200, response.text
        value = response.json()
        return [value.get(name) for name in ("choices", "content", "message", "data", "tokens")] + [
            [item["content"] for item in value.get("output", [])]
        ]

    assert answer(**UNKNOWN) == answer()


async def test_temporary_errors_are_retried() -> None:
    """The client retries after the time in the answer; here the server is still loading at the first request."""
    asked: list[web.Request] = []

    def is_ready() -> bool:
        return len(asked) > 1

    async def models(request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": []})

    async def note(request: web.Request, response: web.StreamResponse) -> None:
        asked.append(request)

    app = application(Settings.of(), is_ready=is_ready)
    add_routes(app, Settings.of(), [("GET", "/v1/models", models)])
    app.on_response_prepare.append(note)
    async with listen(app, Settings.of(port=(port := free_port()))):
        url = f"http://127.0.0.1:{port}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=3) as client:
            before = time.monotonic()
            assert [model async for model in client.models.list()] == []
            assert time.monotonic() - before > 1.9  # Retry-After is 1; the client's default delay is shorter
    assert len(asked) == 3


def test_a_truncated_stream_raises(programs: Programs) -> None:
    gateway = programs.gateway(presets="[tiny]\nmodel = {models}/tiny-llama.gguf\nthreads = 1\n")
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        for ask in (
            lambda: client.chat.completions.create(model="tiny", stream=True, **ASKED, extra_body={"ignore_eos": True}),
            lambda: client.responses.create(model="tiny", input="Hi", stream=True, extra_body={"ignore_eos": True}),
        ):
            stream: Any = ask()
            next(iter(stream))
            os.kill(int(re.findall(r"\[(\d+)/tiny\]", gateway.log_text)[-1]), signal.SIGKILL)
            with pytest.raises(openai.APIError, match="tiny"):
                list(stream)
