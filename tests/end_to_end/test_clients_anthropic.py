"""Anthropic's client, sync and async, through the gateway, and requests of coding agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_corral.presets
import pytest
from anthropic import (
    Anthropic,
    AsyncAnthropic,
    AuthenticationError,
    BadRequestError,
    DefaultHttpxClient,
    InternalServerError,
    NotFoundError,
)
from anthropic_requests import LOOK, USER, coding_agent
from programs import Program, Programs
from template_files import with_template_files

DEMO = Path(llama_corral.presets.__file__).parent / "demo"
PRESETS = f"""\
[demo-chat]
model = {DEMO}/demo-chat.gguf
ctx-size = 4096
threads = 1

[caller]
model = {{models}}/tiny-llama-long.gguf
alias = claude-opus-4-1
chat-template-file = CALLER
ctx-size = 32768
parallel = 1
threads = 1

[thinker]
model = {{models}}/tiny-llama.gguf
chat-template-file = THINKER
ctx-size = 2048
threads = 1

[broken]
model = {{models}}/truncated.gguf
"""
ASKED: dict[str, Any] = {"messages": [USER], "max_tokens": 200, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    return module_programs.gateway(
        presets=with_template_files(PRESETS, module_programs.directory), env={"LLAMA_API_KEY": "secret"}
    )


@pytest.fixture
def anthropic(gateway: Program) -> Iterator[Anthropic]:
    with Anthropic(base_url=gateway.url, api_key="secret", max_retries=0) as client:
        yield client


def streamed(client: Anthropic, **asked: Any) -> tuple[Any, list[Any]]:
    with client.messages.stream(**{**ASKED, **asked}) as stream:
        events = list(stream)
        return stream.get_final_message(), events


def same(whole: Any, final: Any) -> bool:
    left, right = (message.model_dump(exclude={"id", "usage"}, exclude_none=True) for message in (whole, final))
    for block in (*left["content"], *right["content"]):
        block.pop("id", None)
        block.pop("parsed_output", None)
    return bool(left == right)


def test_the_demo_model_talks(anthropic: Anthropic) -> None:
    asked = {"model": "demo-chat", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    whole = anthropic.messages.create(**{**ASKED, **asked})
    (block,) = whole.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert (whole.stop_reason, whole.stop_sequence, whole.role) == ("end_turn", None, "assistant")
    assert whole.id.startswith("msg_")
    final, events = streamed(anthropic, **asked)
    assert same(whole, final)
    assert [event.text for event in events if event.type == "text"]
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_cached_tokens_are_not_counted_as_input(anthropic: Anthropic) -> None:
    asked: Any = {"model": "demo-chat", "messages": [{"role": "user", "content": "Count to 5, then to 7, please."}]}
    counted = anthropic.messages.count_tokens(**asked).input_tokens
    for _ in range(2):
        usage = anthropic.messages.create(**{**ASKED, **asked}).usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted
        assert usage.cache_creation_input_tokens == 0
    assert usage.cache_read_input_tokens == counted - 1
    final, _ = streamed(anthropic, **asked)
    assert final.usage.cache_read_input_tokens == counted - 1


def test_stop_sequences_and_limits_have_different_stop_reasons(anthropic: Anthropic) -> None:
    asked = {"model": "demo-chat", "messages": [{"role": "user", "content": "Count to 5."}]}
    final, _ = streamed(anthropic, **asked, stop_sequences=["nothing", "3,"])
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "3,")
    assert final.content[0].text == "1, 2, "
    assert streamed(anthropic, **asked, max_tokens=2)[0].stop_reason == "max_tokens"


def test_an_answer_continues_a_prefilled_assistant_message(anthropic: Anthropic) -> None:
    began = {"role": "assistant", "content": "1, 2,"}
    final, _ = streamed(anthropic, model="demo-chat", messages=[{"role": "user", "content": "Count to 5."}, began])
    assert final.content[0].text == " 3, 4 and 5."


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_tools_are_called(anthropic: Anthropic, choice: Any) -> None:
    asked = {"model": "caller", "tools": [LOOK], "tool_choice": {**choice, "disable_parallel_tool_use": True}}
    whole = anthropic.messages.create(**{**ASKED, **asked})
    (call,) = whole.content
    assert call.type == "tool_use"
    assert call.name == "look"
    assert call.input["eyes"] in (1, 2)  # type: ignore[index]
    assert whole.stop_reason == "tool_use"
    final, events = streamed(anthropic, **asked)
    assert same(whole, final)
    assert json.loads("".join(event.partial_json for event in events if event.type == "input_json")) == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "a ship"}
    history = [USER, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    later = anthropic.messages.create(
        **{**ASKED, "model": "caller", "max_tokens": 5, "tools": [LOOK], "messages": history}
    )
    assert later.stop_reason == "max_tokens"


def test_thinking_is_a_separate_block(anthropic: Anthropic) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    final, events = streamed(anthropic, model="thinker", thinking=thinking, max_tokens=12)
    assert [block.type for block in final.content] == ["thinking"]
    assert final.content[0].signature == ""
    assert [event.type for event in events if event.type in ("thinking", "signature")][-1] == "signature"
    whole = anthropic.messages.create(**{**ASKED, "model": "thinker", "thinking": thinking, "max_tokens": 12})
    assert same(whole, final)
    off, _ = streamed(anthropic, model="thinker", thinking={"type": "disabled"}, max_tokens=12)
    assert [block.type for block in off.content] == ["text"]


def test_structured_output(anthropic: Anthropic) -> None:
    form = {"format": {"type": "json_schema", "schema": LOOK["input_schema"]}}
    final, _ = streamed(anthropic, model="caller", output_config=form)
    assert json.loads(final.content[0].text)["eyes"] in (1, 2)


def test_a_coding_agents_request(anthropic: Anthropic, gateway: Program) -> None:
    headers = {
        "authorization": "Bearer secret",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "x-app": "cli",
    }
    body = coding_agent(max_tokens=8)
    answer = gateway.client.post("/v1/messages?beta=true", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.text.startswith("event: message_start\n")
    assert answer.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
    countable = {key: body[key] for key in ("model", "messages", "system", "tools", "thinking")}
    counted = gateway.client.post("/v1/messages/count_tokens?beta=true", json=countable, headers=headers).json()
    message = json.loads(answer.text.split("\n")[1].removeprefix("data: "))["message"]
    usage = message["usage"]
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
    beta = {key: value for key, value in body.items() if key not in ("stream", "temperature")}
    assert anthropic.beta.messages.create(**beta, betas=["x"]).usage.cache_read_input_tokens


def test_a_stream_is_resumed(gateway: Program) -> None:
    headers = {"x-api-key": "secret", "X-Conversation-Id": "a1"}
    body = {"messages": [USER], "max_tokens": 20, "model": "demo-chat", "stream": True}
    stream = gateway.client.post("/v1/messages", json=body, headers=headers).text
    again = gateway.client.get("/v1/stream", params={"conv_id": "a1"}, headers=headers)
    assert again.text == stream != ""


def test_models(anthropic: Anthropic) -> None:
    models = {model.id: model for model in anthropic.models.list()}
    assert {"demo-chat", "caller"} <= models.keys()
    assert models["demo-chat"].type == "model"
    assert anthropic.models.retrieve("demo-chat").display_name == "demo-chat"


def test_errors_are_those_of_the_client(anthropic: Anthropic, gateway: Program) -> None:
    with pytest.raises(NotFoundError) as unknown:
        anthropic.messages.create(**ASKED, model="claude-unknown")
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert unknown.value.request_id.startswith("req_")  # type: ignore[union-attr]
    with pytest.raises(BadRequestError, match=r"messages\[0\]"):
        anthropic.messages.create(
            **{**ASKED, "model": "caller", "messages": [{"role": "user", "content": [{"type": "x"}]}]}
        )
    with pytest.raises(BadRequestError, match=r"prompt is too long: .* tokens > 2048 maximum"):
        anthropic.messages.create(**{**ASKED, "model": "thinker", "system": "word " * 3000})
    with pytest.raises(InternalServerError, match="failed to load"):
        anthropic.messages.create(**ASKED, model="broken")
    with (
        Anthropic(base_url=gateway.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.messages.create(**ASKED, model="caller")


def test_permanent_errors_are_not_retried(gateway: Program) -> None:
    sent: list[object] = []
    http = DefaultHttpxClient(event_hooks={"request": [sent.append]}, trust_env=False)
    with Anthropic(base_url=gateway.url, api_key="secret", max_retries=2, http_client=http) as client:
        for asked, error in (
            ({"model": "claude-unknown"}, NotFoundError),
            ({"model": "caller", "messages": [{"role": "user", "content": [{"type": "x"}]}]}, BadRequestError),
            ({"model": "broken"}, InternalServerError),
        ):
            with pytest.raises(error):
                client.messages.create(**{**ASKED, **asked})
    assert len(sent) == 3


async def test_the_async_client(gateway: Program) -> None:
    async def talk() -> None:
        async with AsyncAnthropic(base_url=gateway.url, auth_token="secret", max_retries=0) as client:
            asked = {**ASKED, "model": "demo-chat"}
            whole, (final, pieces) = await asyncio.gather(client.messages.create(**asked), stream(client, asked))
            assert same(whole, final)
            assert "".join(pieces) == whole.content[0].text

    async def stream(client: AsyncAnthropic, asked: dict[str, Any]) -> tuple[Any, list[str]]:
        async with client.messages.stream(**asked) as events:
            pieces = [text async for text in events.text_stream]
            return await events.get_final_message(), pieces

    await talk()
