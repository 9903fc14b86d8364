"""Tool calls and reasoning over HTTP, with the formats of many templates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import chat_templates
import pytest
from llama_corral.worker.chat.parsing.deltas import (
    ParsedMessage,
    ToolCall,
)
from programs import Program, Programs

USER = {"role": "user", "content": "Question"}
TIME = {"type": "function", "function": {"name": "time.now", "parameters": {"type": "object", "properties": {}}}}


def serve(programs: Programs, source: str) -> Program:
    return programs.worker_with_template(source, "--ctx-size", "2048")


def chat(program: Program, **fields: Any) -> Any:
    body = {"messages": [USER], "max_tokens": 200, "temperature": 1.0, "seed": 3, **fields}
    return program.client.post("/v1/chat/completions", json=body)


def streamed(program: Program, **fields: Any) -> tuple[ParsedMessage, list[dict[str, Any]]]:
    answer = chat(program, stream=True, **fields)
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    said = ParsedMessage()
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        said.content += delta.get("content") or ""
        said.reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["type"] == "function"
                said.calls.append(ToolCall(call["id"], call["function"]["name"]))
            said.calls[call["index"]].arguments += call["function"]["arguments"]
    return said, chunks


TURNS_ON = {"type": "object", "properties": {"on": {"type": "boolean"}, "n": {"enum": [1, 2]}}, "required": ["on", "n"]}
SWITCH = {"type": "function", "function": {"name": "switch", "description": "S", "parameters": TURNS_ON}}


REQUIRED = [
    *("hermes", "llama", "nemo", "coder", "glm", "kimi", "small", "lfm"),
    *("gemma", "minimax3", "kimi3", "solar", "cdata", "muse"),
]


@pytest.fixture(scope="module", params=REQUIRED)
def required(request: pytest.FixtureRequest, module_programs: Programs) -> Iterator[Program]:
    source = chat_templates.ALL[request.param].replace(
        chat_templates.THOUGHTS, ""
    )  # else the model's reasoning would not end
    program = serve(module_programs, source)
    yield program
    program.stop()


def test_a_required_call_is_generated(required: Program) -> None:
    asked = {"tools": [SWITCH], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 600}
    answer = chat(required, **asked)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "switch"
    arguments = json.loads(call["function"]["arguments"])
    assert isinstance(arguments["on"], bool)
    assert arguments["n"] in (1, 2)
    assert not choice["message"]["content"]
    said, chunks = streamed(required, **asked)
    assert [c.arguments for c in said.calls] == [call["function"]["arguments"]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


LISTED: dict[str, Any] = {
    "city": {"type": "string", "enum": ["Paris", "<b>Oslo & co", 'a "quoted" name']},
    "unit": {"const": "C"},
    "day": {"anyOf": [{"enum": ["today", "tomorrow"]}, {"type": "string", "const": "never"}]},
    "size": {"type": ["string", "null"], "enum": ["large", "small"], "maxLength": 5},
}
REFERRING: dict[str, Any] = {
    "color": {"$ref": "#/$defs/Color"},
    "level": {"allOf": [{"$ref": "#/$defs/Level"}], "title": "Level"},
    "shade": {"anyOf": [{"$ref": "#/$defs/Color"}, {"type": "null"}], "description": "S"},
    "nothing": {"enum": [None, "none at all"], "maxLength": 3},
}
DEFINED = {"Color": {"type": "string", "enum": ["red", "light blue"]}, "Level": {"$ref": "#/$defs/Low"},
           "Low": {"enum": ["low", 1, True, None], "not": {"enum": ["low"]}}}  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
def test_texts_that_the_schema_lists_are_the_only_ones(required: Program, seed: int) -> None:
    parameters = {"type": "object", "properties": LISTED, "required": list(LISTED)}
    function = {"name": "look", "description": "L", "parameters": parameters}
    asked = {"tools": [{"type": "function", "function": function}], "tool_choice": "required", "seed": seed}
    options = {"temperature": 1.5, "parallel_tool_calls": False, "max_tokens": 600, "reasoning_budget_tokens": 2}
    answer = chat(required, **asked, **options)
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls", answer.text
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in LISTED["city"]["enum"]
    assert (arguments["unit"], len(arguments)) == ("C", 4)
    assert arguments["day"] in ("today", "tomorrow", "never")
    assert arguments["size"] in ("large", "small")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_values_that_references_list_are_the_only_ones(required: Program, seed: int) -> None:
    parameters = {"type": "object", "properties": REFERRING, "required": [*REFERRING], "$defs": DEFINED}
    function = {"name": "paint", "description": "P", "parameters": parameters}
    asked = {"tools": [{"type": "function", "function": function}], "tool_choice": "required", "seed": seed}
    options = {"temperature": 1.5, "parallel_tool_calls": False, "max_tokens": 600, "reasoning_budget_tokens": 2}
    answer = chat(required, **asked, **options)
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls", answer.text
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert set(arguments) == set(REFERRING)
    assert arguments["color"] in ("red", "light blue")
    assert arguments["shade"] in ("red", "light blue", None)
    assert arguments["level"] in (1, True, None)
    assert arguments["nothing"] is None


TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {name: {"$ref": "#/$defs/Node"} for name in ("left", "right", "middle")}
            | {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}, {"const": "end"}]},
               "all": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
        },
        "self": {"$ref": "#/$defs/self"},
    },
}  # fmt: skip


def test_parameters_may_refer_to_themselves(required: Program) -> None:
    functions = [{"name": name, "description": "T", "parameters": TREE} for name in ("tree.of", "tree_of")]
    tools = [{"type": "function", "function": function} for function in functions]
    for seed in range(3):
        answer = chat(required, tools=tools, tool_choice="required", max_tokens=60, seed=seed)
        assert answer.status_code == 200, answer.text


def test_offered_tools_need_not_be_called_unless_named(required: Program) -> None:
    answer = chat(required, tools=[SWITCH], max_tokens=5).json()["choices"][0]
    assert "tool_calls" not in answer["message"]
    named = {"type": "function", "function": {"name": "switch"}}
    asked = {"tools": [SWITCH, TIME], "tool_choice": named, "parallel_tool_calls": False, "max_tokens": 600}
    assert chat(required, **asked).json()["choices"][0]["finish_reason"] == "tool_calls"


def test_messages_of_gpt_oss_are_continued(programs: Programs) -> None:
    program = serve(programs, chat_templates.GPT_OSS)
    last = {"role": "assistant", "content": "", "reasoning_content": "I was"}
    prompt = program.client.post("/apply-template", json={"messages": [USER, last]}).json()["prompt"]
    assert prompt.endswith("<|start|>assistant<|channel|>analysis<|message|>I was")
    message = chat(program, messages=[USER, {**last, "content": "So"}], max_tokens=3).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"][:2]) == ("I was", "So")


@pytest.mark.parametrize("thinks", [False, True])
def test_a_mark_triggers_the_grammar_but_not_in_reasoning(programs: Programs, thinks: bool) -> None:
    source = chat_templates.THINKING.replace("<tool_call>", "<<<<").replace("</tool_call>", ">>>>")
    program = serve(programs, source)
    (token,) = program.client.post("/tokenize", json={"content": "<", "add_special": False}).json()["tokens"][-1:]
    asked: dict[str, Any] = {"tools": [SWITCH], "logit_bias": [[token, 100]], "max_tokens": 400, "temperature": 0.0}
    asked |= {"chat_template_kwargs": {"enable_thinking": thinks}, "parallel_tool_calls": False}
    choice = chat(program, **asked).json()["choices"][0]
    if thinks:
        assert choice["message"]["reasoning_content"].startswith("<" * 100)
        assert choice["finish_reason"] == "length"
    else:
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["n"] in (1, 2)
        assert choice["finish_reason"] == "tool_calls"
        said, _ = streamed(program, **asked)
        assert [c.arguments for c in said.calls] == [call["function"]["arguments"]]


@pytest.fixture(scope="module")
def thinking(module_programs: Programs) -> Iterator[Program]:
    program = serve(module_programs, chat_templates.THINKING)
    yield program
    program.stop()


def test_reasoning_is_separate_from_content(thinking: Program) -> None:
    whole = chat(thinking, max_tokens=12).json()["choices"][0]["message"]
    assert whole["content"] == ""
    assert whole["reasoning_content"]
    said, _ = streamed(thinking, max_tokens=12)
    assert (said.content, said.reasoning) == ("", whole["reasoning_content"])


def test_reasoning_is_content_with_reasoning_format_none(thinking: Program) -> None:
    whole = chat(thinking, max_tokens=12, reasoning_format="none").json()["choices"][0]["message"]
    assert whole["content"].startswith("<think>\n")
    assert "reasoning_content" not in whole
    said, _ = streamed(thinking, max_tokens=12, reasoning_format="none")
    assert said.content == whole["content"]


@pytest.mark.parametrize("off", [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}])
def test_thinking_can_be_disabled(thinking: Program, off: dict[str, Any]) -> None:
    message = chat(thinking, max_tokens=12, **off).json()["choices"][0]["message"]
    assert "reasoning_content" not in message
    assert message["content"]


def test_reasoning_of_a_last_message_is_continued(thinking: Program) -> None:
    last = {"role": "assistant", "content": "", "reasoning_content": "I was"}
    prompt = thinking.client.post("/apply-template", json={"messages": [USER, last]}).json()["prompt"]
    assert prompt.endswith("<think>\nI was")
    message = chat(thinking, messages=[USER, last], max_tokens=6).json()["choices"][0]["message"]
    assert message["reasoning_content"].startswith("I was")
    said = {**last, "content": "So"}
    message = chat(thinking, messages=[USER, said], max_tokens=6).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"][:2]) == ("I was", "So")


def test_response_format_constrains_the_content(thinking: Program) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": TURNS_ON}}
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    message = chat(thinking, response_format=form, **off).json()["choices"][0]["message"]
    assert json.loads(message["content"])["n"] in (1, 2)
    assert "reasoning_content" not in message


def test_invalid_reasoning_formats_and_choices_are_refused(thinking: Program) -> None:
    assert chat(thinking, reasoning_format="odd").status_code == 400
    assert chat(thinking, tools=[SWITCH], tool_choice="maybe").status_code == 400
    assert chat(thinking, tools=[SWITCH], stream=True, logprobs=True).status_code == 200
