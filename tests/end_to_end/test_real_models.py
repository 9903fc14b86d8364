"""A real chat model, SmolLM2-135M-Instruct, through the gateway and OpenAI's client.

The texts may be others on another processor, which rounds differently. The tests assert only what cannot change: in the
answer about Paris each token is far more likely than the next one.
"""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from programs import Program, Programs
from real_model import CHATML_WITH_TOOLS, smollm2

pytestmark = pytest.mark.slow

PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    template = module_programs.directory / "tools.jinja"
    template.write_text(CHATML_WITH_TOOLS)
    return module_programs.gateway(
        presets=f"""
[*]
model = {smollm2()}
parallel = 2
threads = 1
ctx-size = 4096

[smol]

[smol-tools]
chat-template-file = {template}
"""
    )


@pytest.fixture
def client(gateway: Program) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none")


def test_it_answers_a_question(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smol", messages=PARIS, temperature=0, max_tokens=40)
    assert "Paris" in str(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="smol", messages=PARIS, temperature=0, max_tokens=40)
    stream = client.chat.completions.create(model="smol", messages=PARIS, temperature=0, max_tokens=40, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3


def test_a_conversation_reuses_its_prompt(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="smol", messages=PARIS, temperature=0, max_tokens=40)
    said = {"role": "assistant", "content": first.choices[0].message.content}
    more: list[Any] = [*PARIS, said, {"role": "user", "content": "And of Italy?"}]
    second = client.chat.completions.create(model="smol", messages=more, temperature=0, max_tokens=40)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert first.usage is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens


def test_an_answer_fits_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "inhabitants": {"type": "integer"}},
        "required": ["city", "inhabitants"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
        temperature=0,
        max_tokens=300,  # more than the longest object, with all white space
    )
    assert answer.choices[0].finish_reason == "stop"
    told = json.loads(str(answer.choices[0].message.content))
    assert set(told) == {"city", "inhabitants"}
    assert type(told["inhabitants"]) is int


def test_a_required_tool_is_called(client: openai.OpenAI) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
    }
    answer = client.chat.completions.create(
        model="smol-tools",
        messages=[{"role": "user", "content": "What is the weather in Rome?"}],
        tools=[{"type": "function", "function": {"name": "weather", "parameters": parameters}}],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=300,
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls
    (call,) = calls
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_a_call_that_is_cut_off_never_looks_whole(client: openai.OpenAI) -> None:
    """Each request computes its whole prompt in the same slot, so that it gets the same tokens."""
    days = {"type": "integer", "enum": [12, 125]}
    parameters = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": days}}
    function = {"name": "weather", "parameters": {**parameters, "required": ["city", "days"]}}

    def choice(n: int) -> Any:
        answer = client.chat.completions.create(
            model="smol-tools",
            messages=[{"role": "user", "content": "What is the weather in Rome?"}],
            tools=[{"type": "function", "function": function}],  # type: ignore[typeddict-item]
            tool_choice={"type": "function", "function": {"name": "weather"}},
            temperature=0,
            max_tokens=n,
            extra_body={"cache_prompt": False, "id_slot": 0},
        )
        return answer.choices[0]

    (whole,) = choice(300).message.tool_calls
    assert json.loads(whole.function.arguments)["days"] in (12, 125)
    for n in range(1, 301, 4):
        cut = choice(n)
        assert not cut.message.content
        if cut.finish_reason == "tool_calls":
            return
        assert cut.finish_reason == "length"
        for call in cut.message.tool_calls or ():
            assert whole.function.arguments.startswith(call.function.arguments)
            if call.function.arguments != whole.function.arguments:
                with pytest.raises(json.JSONDecodeError):
                    json.loads(call.function.arguments)
    raise AssertionError("the call does not end")
