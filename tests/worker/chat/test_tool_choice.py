"""`tool_choice` in every dialect, tools together with a response format, and calls of earlier turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import chat_templates
import pytest
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields
from llama_corral.worker.chat.prompt import ChatFormat
from llama_corral.worker.chat.request import ChatDefaults, read_chat
from llama_corral.worker.chat.tools import read_tools
from programs import Program, Programs

USER = {"role": "user", "content": "Question"}
TURNS_ON = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "F", "parameters": TURNS_ON}}


def named(name: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


OFFERED = [function("f"), function("g")]


@pytest.mark.parametrize(
    ("choice", "required", "names"),
    [
        (None, False, ["f", "g"]),
        ("auto", False, ["f", "g"]),
        ("none", False, []),
        ("required", True, ["f", "g"]),
        (named("g"), True, ["g"]),
        ({"type": "function", "name": "g"}, True, ["g"]),
        ({"function": {"name": "g"}}, True, ["g"]),
        (allowed("auto", "g"), False, ["g"]),
        (allowed("required", "g", "f"), True, ["f", "g"]),
        (allowed("auto"), False, []),
    ],
)
def test_documented_choices_are_honoured(choice: object, required: bool, names: list[str]) -> None:
    tools = read_tools(Fields({"tools": OFFERED, "tool_choice": choice}))
    assert (tools.required, [tool.name for tool in tools.usable]) == (required, names)
    assert len(tools.shown) == 2


WRONG: list[object] = [
    *("", "any", "Required", "f", 5, 0, 1.5, True, False, [], ["required"], {}, {"type": "function"}),
    *({"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "f"}, {"type": "web_search"}, {"type": 5}),
    *(named(""), named(None), named(5), named("h"), {"type": "function", "function": "f"}),
    *({"type": "custom", "custom": {"name": "f"}}, {"type": "allowed_tools"}, {"type": None, "name": "f"}),
    *(allowed("none", "f"), allowed("auto", "h"), allowed("required"), allowed("auto", "")),
]  # fmt: skip


@pytest.mark.parametrize("choice", WRONG, ids=repr)
def test_any_other_choice_is_refused(choice: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_tools(Fields({"tools": OFFERED, "tool_choice": choice}))
    assert "tool_choice" in refused.value.message


@pytest.mark.parametrize("tools", [None, []])
@pytest.mark.parametrize("choice", ["required", named("f"), allowed("required", "f")])
def test_a_call_can_not_be_required_without_tools(tools: object, choice: object) -> None:
    with pytest.raises(InvalidRequest, match="tool_choice"):
        read_tools(Fields({"tools": tools, "tool_choice": choice}))
    assert read_tools(Fields({"tools": tools, "tool_choice": "auto"})).usable == ()


# -- earlier calls ---------------------------------------------------------------------------------------------------

SHOWING = sorted(chat_templates.ALL.keys() - {"lfm"})


@pytest.mark.parametrize("name", SHOWING)
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"on": tru', "tru"), ('{"city": "Par', "Par"), ('"(city=)"', "(city=)"), ('["Par"]', "Par"),
        ("12345", "12345"), ("nonsense", "nonsense"), ("[" * 3000, "[[["), ("null", ""), ("", ""),
        ({"on": True}, "on"), (["Par"], "Par"),
    ],
)  # fmt: skip
def test_broken_arguments_of_earlier_calls_are_shown_to_the_template(name: str, arguments: object, shown: str) -> None:
    call = {"id": "get_weather:0", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "get_weather:0", "content": "Error: the arguments are no JSON."},
        USER,
    ]
    request = read_chat({"messages": messages, "tools": OFFERED}, ChatDefaults())
    text = ChatFormat(chat_templates.ALL[name]).render(request, lambda *_: None).text
    turn = text.rpartition("<|role|>assistant\n")[0].rpartition("<|role|>assistant\n")[2]
    assert "get_weather" in turn
    assert shown in turn


# -- over HTTP -------------------------------------------------------------------------------------------------------

RECIPIENTS = """\
{# >>>all >>>${recipient} #}{% for m in messages %}<|role|>{{ m.role }}
{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|role|>assistant
>>>{% endif %}"""
FORMATS = {
    **{name: chat_templates.ALL[name] for name in ("hermes", "llama", "nemo", "coder", "gemma", "muse")},
    "recipients": RECIPIENTS,
    "gpt-oss": chat_templates.GPT_OSS,
}


@pytest.fixture(scope="module", params=sorted(FORMATS))
def worker(request: pytest.FixtureRequest, module_programs: Programs) -> Iterator[Program]:
    source = FORMATS[request.param].replace(chat_templates.THOUGHTS, "")
    program = module_programs.worker_with_template(source, "--ctx-size", "4096")
    yield program
    program.stop()


def chat(program: Program, **fields: Any) -> Any:
    body = {"messages": [USER], "tools": OFFERED, "max_tokens": 600, "temperature": 2.0, **fields}
    return program.client.post("/v1/chat/completions", json={"thinking_budget_tokens": 0, **body})


def test_a_named_function_is_called_exactly_once(worker: Program) -> None:
    for seed in range(6):
        choice = chat(worker, tool_choice=named("g"), parallel_tool_calls=True, seed=seed).json()["choices"][0]
        assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["g"]
        assert choice["finish_reason"] == "tool_calls"


FORM = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}},
}


def test_tools_with_a_response_format_give_a_call_or_the_json(worker: Program) -> None:
    seen = set()
    for seed in range(30):
        asked = {"response_format": FORM, "seed": seed, "parallel_tool_calls": False}
        bias = [["f", 6.0 * (seed % 2)]]  # "f" is the first letter of a call without marks
        choice = chat(worker, logit_bias=bias, **asked).json()["choices"][0]
        message = choice["message"]
        if calls := message.get("tool_calls"):
            assert [set(json.loads(call["function"]["arguments"])) for call in calls] == [{"on"}]
            assert (message["content"], choice["finish_reason"]) == ("", "tool_calls")
        else:
            assert json.loads(message["content"])["a"] in (1, 2)
            assert choice["finish_reason"] == "stop"
        seen.add(bool(calls))
        if len(seen) == 2:
            break
    assert seen == {True, False}


@pytest.mark.parametrize("choice", ["required", named("f")])
def test_a_required_call_takes_precedence_over_a_response_format(worker: Program, choice: object) -> None:
    for seed in range(3):
        answer = chat(worker, tool_choice=choice, response_format=FORM, seed=seed, parallel_tool_calls=False).json()
        (shown,) = answer["choices"]
        assert json.loads(shown["message"]["tool_calls"][0]["function"]["arguments"])["on"] in (True, False)
        assert shown["message"]["content"] == ""


def test_without_a_choice_of_tools_the_response_format_applies_alone(worker: Program) -> None:
    answer = chat(worker, tool_choice="none", response_format=FORM).json()["choices"][0]
    assert json.loads(answer["message"]["content"])["a"] in (1, 2)


# -- other dialects --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hermes(module_programs: Programs) -> Iterator[Program]:
    source = chat_templates.HERMES.replace(chat_templates.THOUGHTS, "")
    program = module_programs.worker_with_template(source, "--ctx-size", "4096")
    yield program
    program.stop()


SCHEMA = FORM["json_schema"]["schema"]  # type: ignore[index]
CLAUDE = [{"name": name, "input_schema": TURNS_ON} for name in "fg"]
FLAT = [{"type": "function", "name": name, "parameters": TURNS_ON} for name in "fg"]


def post(program: Program, path: str, **fields: Any) -> Any:
    body = {
        "/v1/responses": {"input": "Question", "tools": FLAT, "max_output_tokens": 600},
        "/v1/messages": {"messages": [USER], "tools": CLAUDE, "max_tokens": 600},
        "/api/chat": {"messages": [USER], "tools": OFFERED, "stream": False, "options": {"num_predict": 600}},
    }[path]
    return program.client.post(path, json={**body, "model": "tiny", "seed": 1, **fields})


def calls_in(answer: Any) -> list[tuple[str, Any]]:
    """Return name and arguments of each call of an answer in any dialect."""
    shown = answer.json()
    if "output" in shown:
        found = [item for item in shown["output"] if item["type"] == "function_call"]
        return [(item["name"], json.loads(item["arguments"])) for item in found]
    if "content" in shown:
        return [(block["name"], block["input"]) for block in shown["content"] if block["type"] == "tool_use"]
    functions = [call["function"] for call in shown["message"].get("tool_calls", ())]
    return [(function["name"], function["arguments"]) for function in functions]


RESPONSES, MESSAGES, OLLAMA = "/v1/responses", "/v1/messages", "/api/chat"
G = {"type": "function", "name": "g"}


@pytest.mark.parametrize(
    ("path", "choice", "names"),
    [
        (RESPONSES, G, "g"),
        (RESPONSES, {"type": "allowed_tools", "mode": "required", "tools": [G]}, "g"),
        (RESPONSES, "required", "fg"),
        (RESPONSES, {"type": "function", "function": {"name": "g"}}, "g"),
        (MESSAGES, {"type": "tool", "name": "g"}, "g"),
        (MESSAGES, {"type": "any", "disable_parallel_tool_use": True}, "fg"),
        (OLLAMA, named("g"), "g"),
        (OLLAMA, allowed("required", "g"), "g"),
    ],
)
@pytest.mark.parametrize("has_format", [False, True])
def test_a_required_call_in_every_dialect(
    hermes: Program, path: str, choice: Any, names: str, has_format: bool
) -> None:
    form: dict[str, Any] = {
        RESPONSES: {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
        MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        OLLAMA: {"format": SCHEMA},
    }[path]
    one = {"parallel_tool_calls": False} if path == RESPONSES and "name" not in choice else {}
    answer = post(hermes, path, tool_choice=choice, **(form if has_format else {}), **one)
    assert answer.status_code == 200, answer.text
    calls = calls_in(answer)
    assert path == OLLAMA or len(calls) == 1
    assert all(name in names and arguments["on"] in (True, False) for name, arguments in calls)
    assert calls


@pytest.mark.parametrize(
    ("path", "choice"),
    [
        *((RESPONSES, choice) for choice in (5, True, ["required"], {"type": "function"}, "x")),
        *((OLLAMA, choice) for choice in (5, True, ["required"], {"type": "function"}, "x")),
        *((RESPONSES, choice) for choice in ({}, {**G, "name": "h"}, {**G, "name": 5}, {"type": "mcp"}, {"type": 5})),
        *((RESPONSES, {"type": "allowed_tools", "tools": tools}) for tools in (None, "f", [5], [{**G, "name": "h"}])),
        *((MESSAGES, choice) for choice in (5, True, ["any"], "auto", {}, {"type": "tool"}, {"type": "function"})),
        *((MESSAGES, choice) for choice in ({"type": "tool", "name": "h"}, {"name": "f"}, {"type": None})),
    ],
)  # fmt: skip
def test_any_other_choice_is_refused_in_every_dialect(hermes: Program, path: str, choice: object) -> None:
    answer = post(hermes, path, tool_choice=choice)
    assert answer.status_code == 400, answer.text
    assert "tool_choice" in answer.text


@pytest.mark.parametrize(
    ("path", "choice"),
    [(RESPONSES, "required"), (RESPONSES, G), (MESSAGES, {"type": "any"}), (MESSAGES, {"type": "tool", "name": "f"}),
     (OLLAMA, "required"), (OLLAMA, named("f"))],
)  # fmt: skip
@pytest.mark.parametrize("tools", [None, []])
def test_a_call_can_not_be_required_without_tools_in_any_dialect(
    hermes: Program, path: str, choice: object, tools: object
) -> None:
    answer = post(hermes, path, tool_choice=choice, tools=tools)
    assert answer.status_code == 400, answer.text
    assert "tool_choice" in answer.text


def test_a_conversation_with_broken_arguments_goes_on(hermes: Program) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"city": "Par'}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "no JSON"}
    first = post(hermes, RESPONSES, input=[{"role": "user", "content": "Hi"}, call, result], max_output_tokens=3)
    assert first.status_code == 200, first.text
    second = post(hermes, RESPONSES, previous_response_id=first.json()["id"], max_output_tokens=3)
    assert second.status_code == 200, second.text
    messages = [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Par'}}]}]
    third = post(hermes, OLLAMA, messages=[*messages, {"role": "tool", "content": "no JSON"}, USER])
    assert third.status_code == 200, third.text
