"""JSON schemas and their answers in every dialect: one policy, and texts that are cut off inside a character."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.api.completions import render_chat
from llama_corral.worker.chat.request import ChatDefaults, read_chat
from programs import Program, post

Body = dict[str, Any]

USER = [{"role": "user", "content": "Hello"}]
OLLAMA = {"model": "tiny", "stream": False}


def _openai_form(schema: Any) -> Body:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


DIALECTS: dict[str, tuple[str, str, Callable[[Any], Body]]] = {
    "completion": ("/completion", "n_predict", lambda schema: {"prompt": "a", "json_schema": schema}),
    "completions": ("/v1/completions", "max_tokens", lambda schema: {"prompt": "a", "json_schema": schema}),
    "chat": ("/v1/chat/completions", "max_tokens", lambda schema: {"messages": USER, **_openai_form(schema)}),
    "chat of llama.cpp": ("/v1/chat/completions", "max_tokens", lambda schema: {
        "messages": USER, "response_format": {"type": "json_schema", "schema": schema}}),
    "chat with an object": ("/v1/chat/completions", "max_tokens", lambda schema: {
        "messages": USER, "response_format": {"type": "json_object", "schema": schema}}),
    "responses": ("/v1/responses", "max_output_tokens", lambda schema: {
        "input": "Hello", "store": False, "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}),
    "messages": ("/v1/messages", "max_tokens", lambda schema: {
        "messages": USER, "output_config": {"format": {"type": "json_schema", "schema": schema}}}),
    "ollama's chat": ("/api/chat", "num_predict", lambda schema: {**OLLAMA, "messages": USER, "format": schema}),
    "ollama's generate": ("/api/generate", "num_predict", lambda schema: {
        **OLLAMA, "prompt": "Hello", "format": schema}),
}  # fmt: skip
"""For each dialect: the path, the field for the number of tokens, and the body for a schema."""


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def request_of(dialect: str, schema: Any, n: int) -> tuple[str, Body]:
    path, limit, body = DIALECTS[dialect]
    options = {limit: n, "temperature": 0}
    return path, {**body(schema), **({"options": options} if limit == "num_predict" else options)}


def ask(program: Program, dialect: str, schema: Any, n: int = 60, status: int = 200) -> Any:
    return post(program, *request_of(dialect, schema, n), status)


def text_of(answer: Any) -> str:
    """Return the text of a whole answer in any dialect."""
    match answer:
        case {"choices": [{"message": {"content": text}}]} | {"choices": [{"text": text}]}:
            return str(text)
        case {"output": output}:
            return "".join(part["text"] for item in output if item["type"] == "message" for part in item["content"])
        case {"content": [*blocks]}:
            return "".join(block["text"] for block in blocks)
        case {"message": {"content": text}} | {"response": text} | {"content": text}:
            return str(text)
    raise AssertionError(answer)


def delta_of(event: Any) -> str:
    """Return the text of one event of a stream in any dialect."""
    match event:
        case {"choices": [{"delta": delta}]}:
            return delta.get("content") or ""
        case {"type": "response.output_text.delta", "delta": text} | {"delta": {"text": text}}:
            return str(text)
        case {"choices": [{"text": text}]} | {"message": {"content": str(text)}} | {"response": str(text)}:
            return str(text)
        case {"content": str(text), "stop": _}:
            return text
    return ""


def streamed_text(program: Program, dialect: str, schema: Any, n: int) -> str:
    path, body = request_of(dialect, schema, n)
    with program.client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines()]
    return "".join(delta_of(json.loads(line)) for line in lines if line.startswith("{"))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"properties": {"a": {"not": {"const": 1}}}}, '"not"'),
        ({"type": "string", "pattern": "(?=a)b"}, "lookaround"),
        ({"type": "string", "format": "regex"}, 'format "regex"'),
        ({"type": "integer", "multipleOf": 99_991}, '"multipleOf"'),
        ({"pattern": "(a|b)*a(a|b){18}c", "maxLength": 1000}, "too large together with minLength or maxLength"),
    ],
)
def test_a_rule_that_cannot_be_enforced_is_refused_by_name(
    worker: Program, dialect: str, schema: Any, named: str
) -> None:
    assert named in json.dumps(ask(worker, dialect, schema, status=400)).replace('\\"', '"')


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"enum": [10, 25, 40], "minimum": 20, "maximum": 30, "patternProperties": {}, "not": False}, [25]),
        ({"type": "integer", "multipleOf": 50, "minimum": 1, "maximum": 99, "then": {"const": 3}}, [50]),
        ({"type": "string", "pattern": "^(ab)+$", "minLength": 3, "maxLength": 5, "contains": {}, "minContains": 0},
         ["abab"]),
    ],
)  # fmt: skip
def test_a_schema_is_enforced(worker: Program, dialect: str, schema: Any, values: list[Any]) -> None:
    assert json.loads(text_of(ask(worker, dialect, schema))) in values


def test_a_duration_is_one(worker: Program, dialect: str) -> None:
    text = json.loads(text_of(ask(worker, dialect, {"type": "string", "format": "duration", "maxLength": 9})))
    assert text.startswith("P")
    assert text[-1] in "YMWDHS"


def test_a_tool_whose_rules_cannot_be_enforced_is_relaxed(worker: Program) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    post(worker, "/v1/chat/completions", {"messages": USER, "max_tokens": 2, "tools": [tool]})


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"type": "json_schema"}, "needs a schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "needs a schema"),
        ({"type": "json_schema", "json_schema": {"type": "object", "properties": {}}}, "needs a schema"),
        ({"type": "json_schema", "schema": 5}, "'schema'"),
        ({"schema": {"type": "object"}}, "response_format.type"),
        ({"json_schema": {"schema": {}}}, "response_format.type"),
    ],
)
def test_a_response_format_without_a_schema_is_refused(worker: Program, form: Body, named: str) -> None:
    error = post(worker, "/v1/chat/completions", {"messages": USER, "response_format": form}, 400)["error"]
    assert named in error["message"]


def test_the_schema_of_a_response_format_may_be_a_field_of_the_request(worker: Program) -> None:
    body = {"messages": USER, "json_schema": {"const": 7}, "response_format": {"type": "json_schema"}}
    assert text_of(post(worker, "/v1/chat/completions", body)) == "7"


# -- texts that end inside a character -------------------------------------------------------------------------------

CUT = "a鼙🤠"  # the vocabulary has only the bytes of the last two


def test_a_text_that_ends_inside_a_character_has_only_whole_characters(worker: Program, dialect: str) -> None:
    whole, seen = json.dumps(CUT, ensure_ascii=False), set()
    for n in range(1, 40):
        text = text_of(ask(worker, dialect, {"const": CUT}, n))
        if dialect.startswith("completion"):  # llama-server shows here that a character is missing
            text = text.removesuffix("\N{REPLACEMENT CHARACTER}")
        assert whole.startswith(text.lstrip())
        seen.add(text.lstrip())
        assert streamed_text(worker, dialect, {"const": CUT}, n) == text
    assert {whole[:2], whole[:3], whole} <= seen


def test_a_completion_shows_one_replacement_for_a_character_that_is_cut_off(worker: Program) -> None:
    texts = [text_of(ask(worker, "completion", {"const": CUT}, n)) for n in range(1, 20)]
    assert '"a\N{REPLACEMENT CHARACTER}' in texts
    assert '"a鼙\N{REPLACEMENT CHARACTER}' in texts
    assert not any("\N{REPLACEMENT CHARACTER}" in text[:-1] for text in texts)


# -- large schemas ---------------------------------------------------------------------------------------------------


LARGE = {"type": "object", "properties": {f"property{i}": {"type": "string"} for i in range(1400)}}
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": "b" * 5000})}}


class ThreadOfRendering:
    """Stands in for a ChatFormat and notes where it renders."""

    def __init__(self) -> None:
        self.thread = ""

    def render_quickly(self, *_: object) -> str:
        self.thread = "event loop"
        return "prompt"

    def render(self, *_: object, **_more: object) -> str:
        self.thread = "other"
        return "prompt"


@pytest.mark.parametrize(
    ("body", "thread"),
    [
        ({}, "event loop"),
        ({"response_format": {"type": "json_object", "schema": {"type": "integer"}}}, "other"),
        ({"response_format": {"type": "json_object", "schema": LARGE}}, "other"),
        ({"json_schema": LARGE}, "other"),
        ({"json_schema": {"properties": {"a": {"format": "email", "maxLength": 254}}}}, "other"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": LARGE}}]}, "other"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "other"),
        ({"chat_template_kwargs": {"documents": [{"text": "a" * 5000}]}}, "other"),
        ({"messages": [*USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, *USER]}, "other"),
    ],
)
async def test_a_schema_of_any_size_is_not_converted_on_the_event_loop(body: Body, thread: str) -> None:
    form = ThreadOfRendering()
    chat = read_chat({"messages": USER, **body}, ChatDefaults())
    settings = Settings.of(special_in_messages=True)
    worker: Any = SimpleNamespace(model=SimpleNamespace(chat=form), settings=settings)
    loaded: Any = SimpleNamespace(apply_builtin_template=None, vocab=None, n_ctx=512)
    await render_chat(worker, loaded, chat)
    assert form.thread == thread


@pytest.mark.parametrize("more", [False, True])
def test_a_schema_with_many_properties_is_taken_in_every_dialect(worker: Program, dialect: str, more: bool) -> None:
    properties = {f"property{i}": {"type": "string", "maxLength": 20} for i in range(1400)}
    large = {"type": "object", "properties": properties, "required": ["property7"], "additionalProperties": more}
    schema = {"type": "object", "properties": {"inner": large}, "required": ["inner"]}
    assert text_of(ask(worker, dialect, schema, 4)).lstrip()[:1] in ("", "{")
