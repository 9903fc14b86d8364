"""A real model calls tools in the format of every template family, and a call that is cut off never looks whole.

SmolLM2-135M-Instruct has learned none of these formats, so the grammar alone keeps the call in its form. With
LLAMA_CPP_TEMPLATES, llama.cpp's folder `models/templates`, its templates are tested too, one for each format of calls.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import chat_templates
import pytest
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.chat.formats.families import answer_format
from llama_corral.worker.chat.template.capabilities import probe
from llama_corral.worker.chat.template.template import ChatTemplate
from programs import Program, Programs, post
from real_model import smollm2

pytestmark = pytest.mark.slow


def vendored() -> dict[str, str]:
    """Return the first template of each format of tool calls in llama.cpp's folder, if the variable names it."""
    folder = os.environ.get("LLAMA_CPP_TEMPLATES")
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(Path(folder).glob("*.jinja")) if folder else ():
        source = path.read_text("utf-8")
        template = ChatTemplate(source, "<s>", "</s>")
        try:
            form = answer_format(template, probe(template))
        except InvalidRequest:
            continue
        if form.calls is not None:
            found.setdefault(repr(form.calls), (path.stem, source))
    return dict(found.values())


TEMPLATES = chat_templates.ALL | vendored()
CUT = ("hermes", "nemo", "llama", "glm", "coder")

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "enum": [2, 25]}},
    "required": ["city", "days"],
}


def weather(parameters: Any) -> Any:
    return {"type": "function", "function": {"name": "weather", "description": "W", "parameters": parameters}}


ASKED = {"role": "user", "content": "What is the weather in Rome?"}


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    sections = []
    for name, source in TEMPLATES.items():
        path = module_programs.directory / f"{name}.jinja"
        path.write_text(source, "utf-8")
        sections.append(f"[{name}]\nchat-template-file = {path}\n")
    common = f"[*]\nmodel = {smollm2()}\nparallel = 1\nthreads = 1\nctx-size = 8192\n\n"
    return module_programs.gateway("--models-max", "1", "--cache-disk", "0", presets=common + "\n".join(sections))


SHORT = {"temperature": 0, "reasoning_budget_tokens": 4}  # the model would fill the answer with thoughts


def answered(gateway: Program, model: str, messages: list[Any], **fields: Any) -> tuple[Any, int]:
    """Return the only choice and its number of tokens."""
    body = {"model": model, "messages": messages, "tools": [weather(PARAMETERS)], **SHORT, **fields}
    answer = post(gateway, "/v1/chat/completions", body)
    (only,) = answer["choices"]
    return only, answer["usage"]["completion_tokens"]


def check_arguments(text: str) -> None:
    arguments = json.loads(text)
    assert arguments["city"] in ("Paris", "Rome")
    assert arguments["days"] in (2, 25)
    assert len(arguments) == 2


CALL: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tool_loop(gateway: Program, name: str) -> None:
    called, _ = answered(gateway, name, [ASKED], max_tokens=300, **CALL)
    assert called["finish_reason"] == "tool_calls"
    message = called["message"]
    assert not message["content"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "weather"
    check_arguments(call["function"]["arguments"])
    result = {"role": "tool", "tool_call_id": call["id"], "name": "weather", "content": "sunny, 25 degrees"}
    answer, _ = answered(gateway, name, [ASKED, message, result], tool_choice="none", max_tokens=12)
    assert answer["finish_reason"] in ("length", "stop")
    assert not answer["message"].get("tool_calls")


@pytest.mark.parametrize("name", CUT)
def test_a_call_that_is_cut_off_never_looks_whole(gateway: Program, name: str) -> None:
    """Each request computes the whole prompt, so it gets the same tokens. A long call is cut at some tokens only."""
    parameters = {"type": "object", "properties": {"days": {"enum": [25]}}, "required": ["days"]}
    fields = {"tools": [weather(parameters)], "cache_prompt": False, **CALL}
    whole, n = answered(gateway, name, [ASKED], max_tokens=300, **fields)
    (call,) = whole["message"]["tool_calls"]
    expected = call["function"]["arguments"]
    assert json.loads(expected) == {"days": 25}
    for limit in range(n - 1, 0, -(1 + n // 12)):
        cut, _ = answered(gateway, name, [ASKED], max_tokens=limit, **fields)
        assert cut["finish_reason"] == "length"
        assert not cut["message"]["content"]
        for call in cut["message"].get("tool_calls", ()):
            shown = call["function"]["arguments"]
            assert expected.startswith(shown)
            if shown != expected:
                with pytest.raises(json.JSONDecodeError):
                    json.loads(shown)
