"""Tool calls that a limit or a stop word cuts off: what was written is shown, and it never looks like a whole call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import chat_templates
import pytest
from llama_corral.common.web.json_fields import Fields
from llama_corral.worker.api.answers.dialect import AnswerInfo
from llama_corral.worker.api.answers.openai_chat import OpenAIChat
from llama_corral.worker.api.anthropic.answer import AnthropicMessages
from llama_corral.worker.api.ollama.answer import OllamaAnswer, RequestInfo, as_message
from llama_corral.worker.api.request.params import CompletionParams
from llama_corral.worker.api.responses.dialect import OpenAIResponses
from llama_corral.worker.api.responses.request import read_responses
from llama_corral.worker.chat.formats.families import FUNCTIONARY_3_2, GPT_OSS, LFM2, answer_format
from llama_corral.worker.chat.formats.formats import AnswerFormat, JsonCalls, Span
from llama_corral.worker.chat.parsing.deltas import ParsedMessage
from llama_corral.worker.chat.parsing.parser import AnswerParser
from llama_corral.worker.chat.parsing.reply import ReplyFormat
from llama_corral.worker.chat.template.capabilities import probe
from llama_corral.worker.chat.template.template import ChatTemplate
from llama_corral.worker.chat.tools import read_tools
from llama_corral.worker.engine.messages import Finished, Piece, Timings
from msgspec.structs import replace
from programs import Program, Programs

USER = {"role": "user", "content": "Question"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"type": "array", "items": {"type": "string"}},
        "deep": {"type": "object"},
    },
}


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "W", "parameters": PARAMETERS}}


OFFERED = [function(name) for name in ("get", "get_weather", "get_weather_2")]
"""Each name is the beginning of the next one, so a name that is cut off is often another tool's."""
TOOLS = read_tools(Fields({"tools": OFFERED})).offered
ARGUMENTS: list[dict[str, Any]] = [
    {"city": 'Pa"ris, 日本 <x> {y}', "days": 35, "units": ["a", "b"], "deep": {"a": {"b": [1, 2]}}},
    {"city": "Oslo"},
    {},
]
LFM = AnswerFormat(calls=LFM2)
HERMES = AnswerFormat(calls=JsonCalls(call=Span("<tool_call>", "</tool_call>")))
WRITTEN = {
    "lfm": (
        LFM,
        "<|tool_call_start|>[get_weather(city='Pa\"ris, 日本 <x> {y}', days=35, units=['a', 'b'], "
        "deep={'a': {'b': [1, 2]}}), get_weather(city='Oslo'), get_weather()]<|tool_call_end|>",
    ),
    "gpt-oss": (
        GPT_OSS,
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        + f"{json.dumps(ARGUMENTS[0])}<|call|>",
    ),
    "functionary": (
        FUNCTIONARY_3_2, ">>>".join(f"get_weather\n{json.dumps(arguments)}" for arguments in ARGUMENTS)
    ),
    "arguments-first": (HERMES, f'<tool_call>{{"arguments": {json.dumps(ARGUMENTS[0])}, "name": "get_weather"}}'),
    "arguments-in-a-string": (
        HERMES, f'<tool_call>{{"name": "get_weather", "arguments": {json.dumps(json.dumps(ARGUMENTS[0]))}}}</tool_call>'
    ),
    "no-arguments": (HERMES, '<tool_call>{"name": "get_weather", "arguments": null}</tool_call>'),
}  # fmt: skip


def answers(name: str, content: str = "", thought: str = "") -> tuple[AnswerFormat, str]:
    """Return a format and the text of an answer with calls, as the template renders it."""
    if name in WRITTEN:
        return WRITTEN[name]
    template = ChatTemplate(chat_templates.ALL[name], "<s>", "</s>")
    form = answer_format(template, probe(template))
    calls = [
        {
            "id": f"functions.get_weather:{i}" if name == "kimi" else f"call0000{i}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": arguments},
        }
        for i, arguments in enumerate(ARGUMENTS)
    ]
    said = {"role": "assistant", "content": content, "reasoning_content": thought, "tool_calls": calls}
    text = template.render([USER, said], add_generation_prompt=False, tools=OFFERED)
    return form, text.rpartition("<|role|>assistant\n")[2].rpartition("<|end|>")[0]


def parsed(form: AnswerFormat, text: str, *, only_calls: bool = False, **end: Any) -> ParsedMessage:
    parser = AnswerParser(form, TOOLS, only_calls=only_calls, new_id=lambda: "i")
    said = ParsedMessage()
    for deltas in (parser.opened, parser.add(text), parser.end(**end)):
        said.add(deltas)
    return said


def value(text: str) -> Any:
    """Return the value of a JSON text; the text itself if it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("name", [*sorted(chat_templates.ALL.keys() - {"lfm"}), *WRITTEN])
def test_no_proper_prefix_of_a_call_looks_whole(name: str) -> None:
    form, text = answers(name)
    whole = parsed(form, text)
    assert [value(call.arguments) for call in whole.calls] in (ARGUMENTS, ARGUMENTS[:1], [{}])
    assert whole.is_called
    for cut in range(len(text)):
        said = parsed(form, text[:cut], truncated=True)
        assert (said.content, said.reasoning) == ("", ""), text[:cut]
        assert len(said.calls) <= len(whole.calls), text[:cut]
        for shown, call in zip(said.calls, whole.calls[: len(said.calls)], strict=True):
            assert shown.name == "get_weather", text[:cut]
            assert call.arguments.startswith(shown.arguments), text[:cut]
            if shown.arguments != call.arguments:
                assert value(shown.arguments) == shown.arguments, text[:cut]
            assert shown.is_whole <= (shown.arguments == call.arguments), text[:cut]
            assert shown.is_whole or shown is said.calls[-1], text[:cut]


@pytest.mark.parametrize("name", sorted(chat_templates.ALL.keys() - {"lfm"}))
def test_a_cut_answer_is_the_beginning_of_the_whole_one(name: str) -> None:
    form, text = answers(name, "Some words: 1 < 2, [a] {b}.", "I should\nthink <twice>.")
    whole, before = parsed(form, text), ParsedMessage()
    for cut in range(len(text)):
        said = parsed(form, text[:cut], truncated=True)
        assert said.content.startswith(before.content.rstrip()), text[:cut]
        assert said.reasoning.startswith(before.reasoning.rstrip()), text[:cut]
        before = said
        assert whole.content.startswith(said.content.rstrip()), text[:cut]
        assert whole.reasoning.startswith(said.reasoning.rstrip()), text[:cut]
        assert len(said.calls) <= len(whole.calls), text[:cut]


@pytest.mark.parametrize("name", [*sorted(chat_templates.ALL.keys() - {"lfm"}), *WRITTEN])
def test_white_space_before_a_required_call_is_no_content(name: str) -> None:
    form, text = answers(name)
    for blanks in ("\n", "\n\n  ", "\n \t"):
        for ended in ({"truncated": True}, {}):
            assert parsed(form, blanks, only_calls=True, **ended).content == ""
        said = parsed(form, blanks + text.lstrip(), only_calls=True)
        assert (said.content, said.is_called) == ("", True)
    assert parsed(HERMES, "\nHi", only_calls=False).content == "\nHi"


TAGGED = answers("coder")[0]


@pytest.mark.parametrize(
    ("form", "text", "follows", "content"),
    [
        (HERMES, "1 < 2, a <", "", "1 < 2, a "),
        (HERMES, "1 < 2, a <", "b", "1 < 2, a <"),
        (HERMES, "1 < 2, a <", "tool", "1 < 2, a "),
        (HERMES, "1 < 2, a <", "tool_call>\n{", "1 < 2, a "),
        (HERMES, 'So <tool_call>{"name": "unknown", "arg', "", 'So <tool_call>{"name": "unknown", "arg'),
        (HERMES, 'So <tool_call>{"name": "get_we', "", "So"),
        (HERMES, "So \n", "", "So \n"),
        (HERMES, " \n", "", ""),
        (replace(HERMES, reasoning=Span("<think>", "</think>")), "<thi", "", ""),
        (TAGGED, "So <tool_call>\n<function=get_weather", "", "So"),
    ],
)
def test_a_text_that_may_become_a_call_is_not_shown_when_it_is_cut_off(
    form: AnswerFormat, text: str, follows: str, content: str
) -> None:
    said = parsed(form, text, truncated=True, follows=follows)
    assert (said.content, said.reasoning, said.calls) == (content, "", [])
    assert parsed(form, text).content.rstrip() == text.rstrip()  # the model itself ended it


def test_a_call_that_the_model_itself_ends_early_is_not_whole_in_json() -> None:
    said = parsed(HERMES, '<tool_call>{"name": "get_weather", "arguments": {"city": "Os')
    assert (said.calls[0].arguments, said.is_called) == ('{"city": "Os', False)
    assert not parsed(HERMES, '<tool_call>{"name": "get_weather"').is_called


# -- dialects --------------------------------------------------------------------------------------------------------

TEXT = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
REPLY = ReplyFormat(HERMES, TOOLS)
TIMINGS = Timings(1, 2, 1.0, 3, 1.0)


def finished(text: str, stop: Any, follows: str = "") -> Finished:
    return Finished(0, 1, text, (5,), stop, follows if stop == "word" else "", 3, 3, 6, False, False, TIMINGS)


def info() -> AnswerInfo:
    return AnswerInfo(CompletionParams(reply=REPLY, stream=True), "tiny", "b0", [[1]], str, len, id="resp_1")


@pytest.mark.parametrize("stop", ["limit", "word", "eos"])
def test_the_finish_reason_of_a_cut_call_is_not_tool_calls(stop: Any) -> None:
    reason = "length" if stop == "limit" else "stop"
    for cut in range(len(TEXT) + 1):
        result = finished(TEXT[:cut], stop)
        is_whole = TEXT[:cut].startswith(TEXT.removesuffix("</tool_call>"))
        expected = "tool_calls" if is_whole and stop != "limit" else reason
        shown: Any = OpenAIChat(info()).full_body([result])
        assert shown["choices"][0]["finish_reason"] == expected, TEXT[:cut]
        made = OpenAIChat(info())
        data = made.piece(0, Piece(0, result.text, (5,), 1, 6)) + made.finished(0, result)
        chunks = [json.loads(chunk.removeprefix("data: ")) for chunk in data.decode().split("\n\n")[:-1]]
        assert chunks[-1]["choices"][0]["finish_reason"] == expected, TEXT[:cut]
        assert all(chunk["choices"][0]["delta"] for chunk in chunks[:-1])


@pytest.mark.parametrize("stop", ["limit", "word"])
def test_other_dialects_show_no_cut_call_as_whole(stop: Any) -> None:
    reason = {"limit": ("max_tokens", "length"), "word": ("stop_sequence", "stop")}[stop]
    for cut in range(len(TEXT) - len("}</tool_call>")):
        result = finished(TEXT[:cut], stop, TEXT[cut : cut + 2])
        claude: Any = AnthropicMessages(info(), [TEXT[cut : cut + 2]]).full_body([result])
        assert (claude["content"], claude["stop_reason"]) == ([], reason[0])
        made = OllamaAnswer(info(), RequestInfo("tiny", 0.0, 0.0), as_message)
        llama: Any = made.full_body([result])
        assert (llama["message"], llama["done_reason"]) == ({"role": "assistant", "content": ""}, reason[1])
        made = OllamaAnswer(info(), RequestInfo("tiny", 0.0, 0.0), as_message)
        lines = (made.piece(0, Piece(0, result.text, (5,), 1, 6)) + made.finished(0, result)).splitlines()
        assert [json.loads(line)["message"] for line in lines] == [{"role": "assistant", "content": ""}]
        response: Any = OpenAIResponses(info(), read_responses({"input": "x"}).form).full_body([result])
        assert [item["type"] for item in response["output"]] in ([], ["function_call"])
        assert all(item["status"] == "incomplete" for item in response["output"])
    whole: Any = AnthropicMessages(info(), []).full_body([finished(TEXT, "eos")])
    assert [block["input"] for block in whole["content"]] == [{"city": "Oslo"}]


@pytest.mark.parametrize("stop", ["limit", "word"])
def test_streams_of_other_dialects_show_no_cut_call_as_whole(stop: Any) -> None:
    for cut in range(len(TEXT) - len("}</tool_call>")):
        result = finished(TEXT[:cut], stop, TEXT[cut : cut + 2])
        piece = Piece(0, result.text, (5,), 1, 6)
        claude = AnthropicMessages(info(), [TEXT[cut : cut + 2]])
        told = events(claude.piece(0, piece) + claude.finished(0, result))
        begun = [event for event in told if event["type"] == "content_block_start"]
        assert [event["content_block"]["type"] for event in begun] in ([], ["tool_use"]), TEXT[:cut]
        written = "".join(event["delta"]["partial_json"] for event in told if event["type"] == "content_block_delta")
        assert '{"city": "Oslo"}'.startswith(written), TEXT[:cut]
        assert written != '{"city": "Oslo"}', TEXT[:cut]
        assert [event["type"] for event in told[-2:]] == ["message_delta", "message_stop"]
        assert told[-2]["delta"]["stop_reason"] == {"limit": "max_tokens", "word": "stop_sequence"}[stop], TEXT[:cut]
        openai = OpenAIResponses(info(), read_responses({"input": "x"}).form)
        told = events(openai.piece(0, piece) + openai.finished(0, result))
        pieces = "".join(event["delta"] for event in told if event["type"].endswith("arguments.delta"))
        done = [event["arguments"] for event in told if event["type"].endswith("arguments.done")]
        items = [event["item"] for event in told if event["type"] == "response.output_item.done"]
        assert done == [item["arguments"] for item in items] == [pieces] * len(items), TEXT[:cut]
        assert pieces == written, TEXT[:cut]
        assert [item["status"] for item in items] == ["incomplete"] * len(begun), TEXT[:cut]
        assert told[-1]["response"]["output"] == items, TEXT[:cut]


def events(stream: bytes) -> list[Any]:
    """Return the events of a stream."""
    return [json.loads(event.partition("data: ")[2]) for event in stream.decode().split("\n\n")[:-1]]


# -- over HTTP -------------------------------------------------------------------------------------------------------

ON = {"type": "object", "properties": {"on": {"type": "boolean"}, "n": {"enum": [15, 25]}}, "required": ["on", "n"]}
SWITCH = {"type": "function", "function": {"name": "switch", "description": "S", "parameters": ON}}


@pytest.fixture(scope="module", params=["hermes", "nemo", "coder", "gemma"])
def worker(request: pytest.FixtureRequest, module_programs: Programs) -> Iterator[Program]:
    source = chat_templates.ALL[request.param].replace(chat_templates.THOUGHTS, "")
    program = module_programs.worker_with_template(source, "--ctx-size", "2048")
    yield program
    program.stop()


def choice_of(program: Program, **fields: Any) -> Any:
    body = {"messages": [USER], "tools": [SWITCH], "tool_choice": "required", "seed": 3, "temperature": 1.0, **fields}
    answer = program.client.post("/v1/chat/completions", json={"parallel_tool_calls": False, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_a_required_call_is_cut_off_at_every_token(worker: Program) -> None:
    whole = choice_of(worker, max_tokens=300)
    assert whole["finish_reason"] == "tool_calls"
    (call,) = whole["message"]["tool_calls"]
    for n in range(1, 300):
        choice = choice_of(worker, max_tokens=n)
        assert choice["message"]["content"] == ""
        for shown in choice["message"].get("tool_calls", ()):
            arguments = shown["function"]["arguments"]
            assert call["function"]["arguments"].startswith(arguments)
            assert arguments == call["function"]["arguments"] or value(arguments) == arguments
        if choice["finish_reason"] == "tool_calls":
            return
        assert choice["finish_reason"] == "length"
    raise AssertionError("the call does not end")


def test_a_stop_word_in_a_call_ends_it_as_a_stop_and_not_as_a_call(worker: Program) -> None:
    choice = choice_of(worker, max_tokens=300, stop=["1", "2"])
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == ""
    for shown in choice["message"].get("tool_calls", ()):
        assert value(shown["function"]["arguments"]) == shown["function"]["arguments"]
