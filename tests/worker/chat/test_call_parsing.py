"""Tool calls and reasoning: detected formats, incremental parsing, and what a request may offer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import chat_templates
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields
from llama_corral.worker.chat.formats.families import (
    FUNCTIONARY_3_2,
    GEMMA_4,
    GPT_OSS,
    KIMI_K3,
    LFM2,
    MINIMAX_M3,
    MUSE,
    SOLAR,
    answer_format,
)
from llama_corral.worker.chat.formats.formats import AnswerFormat, JsonCalls, Parameters, Span, TaggedCalls
from llama_corral.worker.chat.parsing.deltas import (
    ContentDelta,
    Delta,
    ParsedMessage,
    ReasoningDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallBegun,
)
from llama_corral.worker.chat.parsing.parser import AnswerParser
from llama_corral.worker.chat.prompt import ChatFormat
from llama_corral.worker.chat.request import ChatDefaults, read_chat
from llama_corral.worker.chat.template.capabilities import probe
from llama_corral.worker.chat.template.template import ChatTemplate
from llama_corral.worker.chat.tools import FunctionTool, read_tools
from msgspec.structs import replace

USER = {"role": "user", "content": "Question"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "array"}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "W", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time.now", "parameters": {"type": "object", "properties": {}}}}
OFFERED = [WEATHER, TIME]
TOOLS = read_tools(Fields({"tools": OFFERED})).offered

HERMES = AnswerFormat(Span("<think>", "</think>"), calls=JsonCalls(call=Span("<tool_call>", "</tool_call>")))


def parsed(
    form: AnswerFormat, pieces: Sequence[str], *, opening: str = "", truncated: bool = False, **options: Any
) -> tuple[ParsedMessage, list[Delta]]:
    ids = (f"id{i}" for i in itertools.count())
    parser = AnswerParser(form, TOOLS, opening=opening, new_id=lambda: next(ids), **options)
    deltas = [*parser.opened]
    for piece in pieces:
        deltas += parser.add(piece)
    deltas += parser.end(truncated=truncated)
    said = ParsedMessage()
    said.add(deltas)
    return said, deltas


def said_in(form: AnswerFormat, text: str, **options: Any) -> ParsedMessage:
    return parsed(form, [text], **options)[0]


def format_of(name: str) -> tuple[ChatTemplate, AnswerFormat]:
    template = ChatTemplate(chat_templates.ALL[name], "<s>", "</s>")
    return template, answer_format(template, probe(template))


# -- rendered messages are parsed back --------------------------------------------------------------------------------

CALLS = [
    ToolCall("abcdefgh1", "get_weather", '{"city": "Pa\\"ris", "days": 3, "units": ["a", "b"]}'),
    ToolCall("abcdefgh2", "get_weather", '{"city": " x\\n"}'),
]
KEEPS_IDS = {"nemo", "small", "command", "solar"}
BARE = {"llama", "command", "solar"}  # content and calls exclude each other
NO_THOUGHTS = {"llama", "nemo", "small", "functionary", "apertus", "wrapped"}


def turn(template: ChatTemplate, said: ParsedMessage) -> str:
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
        for c in said.calls
    ]
    message = {
        "role": "assistant", "content": said.content, "reasoning_content": said.reasoning, "tool_calls": calls,
    }  # fmt: skip
    text = template.render([USER, message], add_generation_prompt=False, tools=OFFERED)
    return text.rpartition("<|role|>assistant\n")[2].rpartition("<|end|>")[0]


def compared(said: ParsedMessage, name: str) -> tuple[str, str, list[tuple[str, str, Any]]]:
    keeps = name in KEEPS_IDS or name == "kimi"
    return (
        said.content,
        said.reasoning,
        [(c.id if keeps else "", c.name, json.loads(c.arguments)) for c in said.calls],
    )


@pytest.mark.parametrize("name", sorted(chat_templates.ALL.keys() - {"lfm"}))
@pytest.mark.parametrize("n_calls", [0, 1, 2])
@pytest.mark.parametrize("thinks", [False, True])
def test_a_rendered_message_is_parsed_back(name: str, n_calls: int, thinks: bool) -> None:
    template, form = format_of(name)
    calls = CALLS[:n_calls]
    if name == "kimi":
        calls = [ToolCall(f"functions.{call.name}:{i}", call.name, call.arguments) for i, call in enumerate(calls)]
    content = "" if n_calls and name in BARE else "Some words: 1 < 2."
    said = ParsedMessage(content, "I should\nthink." if thinks and name not in NO_THOUGHTS else "", calls)
    text = turn(template, said)
    whole, deltas = parsed(form, [text])
    assert compared(whole, name) == compared(said, name)
    for cut in range(len(text) + 1):
        assert parsed(form, [text[:cut], text[cut:]])[0] == whole
    letters, spelt = parsed(form, list(text))
    assert letters == whole
    assert deltas
    assert_orderly(spelt)


def assert_orderly(deltas: Sequence[Delta]) -> None:
    begun = -1
    for delta in deltas:
        match delta:
            case ToolCallBegun(index, id, name):
                assert index == begun + 1
                assert id
                assert name
                begun = index
            case ToolCallArguments(index, text):
                assert index == begun
                assert text
            case ContentDelta(text) | ReasoningDelta(text):
                assert text


PIECES = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_call>\n", '{"name": "get_weather"', ', "arguments": ',
    '{"city": "Oslo"}', "}", "{", "[", "]", '"', "<function=get_weather>", "<parameter=city>", "</parameter>",
    "</function>", "\n", " ", "word", "<", "tool", "[TOOL_CALLS]", "[ARGS]", "get_weather", "é", ",", ":",
]  # fmt: skip
FORMS = [
    HERMES,
    AnswerFormat(calls=JsonCalls(arguments="parameters")),
    AnswerFormat(Span("", "</think>"), calls=JsonCalls(section=Span("[TOOL_CALLS]"), array=True, id="id")),
    AnswerFormat(calls=TaggedCalls(call=Span("[TOOL_CALLS]"), name=Span("", "[ARGS]"))),
    AnswerFormat(
        Span("<think>", "</think>"),
        calls=TaggedCalls(
            call=Span("<tool_call>", "</tool_call>"),
            name=Span("<function=", ">"),
            close="</function>",
            parameters=Parameters(Span("<parameter=", ">"), Span("\n", "\n</parameter>")),
        ),
        calls_end_reasoning=True,
    ),
]


HARMONY_PIECES = [
    "<|channel|>", "analysis", "final", "commentary", "<|message|>", "<|end|>", "<|start|>", "assistant", "<|call|>",
    " to=functions.get_weather", " to=python", " <|constrain|>json", '{"city": "x"}', "all\n", ">>>", "get_weather\n",
]  # fmt: skip


NEWER = [GEMMA_4, KIMI_K3, MUSE, SOLAR, MINIMAX_M3]
NEWER_PIECES = [
    ["<|channel>thought", "<channel|>", "<|tool_call>", "call:get_weather", "{", "}", "city:", '<|"|>', "days:", "3",
     ",", "units:[", "]", "<tool_call|>", "Oslo", "{a:true}", "null", ":"],
    ["<|open|>", "<|close|>", "<|sep|>", "think", "response", "tools", 'call tool="get_weather"', ' index="1"', "call",
     'argument key="city"', ' type="string"', "argument", "Oslo", "3"],
    [" to=self", " to=user", " to=get_weather", "<|message|>", "<|eom|>", "<|eot|>", "<|start|>assistant", "hello",
     "<atem:function_calls>", '<atem:invoke name="get_weather">', '<atem:parameter name="city">', "</atem:parameter>",
     "</atem:invoke>", "</atem:function_calls>"],
    ["<|think|>", "<|end|>", "<|begin|>assistant", "<|content|>", "<|tool_calls|>", "<|tool_call:begin|>", "abc",
     "<|tool_call:name|>", "get_weather", "<|tool_call:args|>", '{"city": 1}', "<|tool_call:end|>", "<|calls|>"],
    ["<mm:think>", "</mm:think>", "]<]minimax[>[", "<tool_call>", "</tool_call>", '<invoke name="get_weather">',
     "</invoke>", "<city>", "</city>", "<units>", "</units>", "<item>", "</item>", "Oslo", "3"],
]  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from([*FORMS, GPT_OSS, FUNCTIONARY_3_2, *NEWER]),
    st.one_of(st.lists(st.sampled_from(pieces), max_size=14) for pieces in (PIECES, HARMONY_PIECES, *NEWER_PIECES)),
    st.lists(st.integers(0, 200), max_size=8),
    st.booleans(),
)
def test_the_parsed_message_does_not_depend_on_how_the_text_is_split(
    form: AnswerFormat, words: list[str], cuts: list[int], truncated: bool
) -> None:
    text = "".join(words)
    whole, _ = parsed(form, [text], truncated=truncated)
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    cut, deltas = parsed(form, [text[a:b] for a, b in itertools.pairwise(at)], truncated=truncated)
    assert cut == whole
    assert_orderly(deltas)


# -- single cases ----------------------------------------------------------------------------------------------------


def test_arguments_are_streamed_character_by_character() -> None:
    text = 'So:\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    parser = AnswerParser(HERMES, TOOLS, new_id=lambda: "i")
    seen = [parser.add(letter) for letter in text]
    assert "".join(d.text for ds in seen for d in ds if isinstance(d, ToolCallArguments)) == '{"city": "Oslo"}'
    assert sum(isinstance(d, ToolCallArguments) for ds in seen for d in ds) == len('{"city": "Oslo"}')


def test_reasoning_opened_in_the_prompt_is_parsed() -> None:
    assert said_in(HERMES, "hm\n</think>\n\nSo.", opening="<think>\n") == ParsedMessage("So.", "hm")
    assert said_in(HERMES, "So.", opening="<think>\n\n</think>\n\n") == ParsedMessage("So.")
    raw = said_in(HERMES, "hm\n</think>\n\nSo.", opening="<think>\n", separate_reasoning=False)
    assert raw == ParsedMessage("<think>\nhm\n</think>\n\nSo.")


def test_reasoning_without_an_end_mark_is_reasoning() -> None:
    assert said_in(HERMES, "<think>on and on ") == ParsedMessage("", "on and on ")


def test_only_white_space_of_the_template_is_removed() -> None:
    assert said_in(HERMES, "<think> \n a \n</think>\n\n\n b") == ParsedMessage("\n b", " \n a ")
    assert said_in(replace(HERMES, spacing=("", "", "")), "<think>\na\n</think>\nb\n") == ParsedMessage(
        "\nb\n", "\na\n"
    )
    assert said_in(HERMES, "\n b") == ParsedMessage("b")
    assert said_in(HERMES, "<think>\n \n</think>\n\nb") == ParsedMessage("b")
    shown = "<|channel>thought\na\n<channel|>\nb"
    assert said_in(GEMMA_4, shown, separate_reasoning=False) == ParsedMessage(shown)


@pytest.mark.parametrize(
    "text",
    [
        'Write <tool_call>{"name": "unknown", "arguments": {}}</tool_call>.',
        "<tool_call>no JSON</tool_call>",
        "1 < 2 <tool_cal",
    ],
)
def test_text_that_only_looks_like_a_call_is_content(text: str) -> None:
    assert said_in(HERMES, text) == ParsedMessage(text)


@pytest.mark.parametrize("text", ['{"a": {"name": 5}} and {"name": "Bob"}', "{", "{{}}", "x = {1: 2}  "])
def test_json_that_is_no_call_is_content(text: str) -> None:
    assert said_in(FORMS[1], text) == ParsedMessage(text)


def test_without_tools_calls_are_content() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
    parser = AnswerParser(HERMES)
    assert [*parser.add(text), *parser.end()] == [ContentDelta(text)]


def test_members_may_have_another_order_and_arguments_may_be_a_string() -> None:
    text = '<tool_call>{"arguments": "{\\"city\\": 1}", "why": [1], "name": "get_weather"}</tool_call>'
    assert said_in(HERMES, text).calls == [ToolCall("id0", "get_weather", '{"city": 1}')]
    assert said_in(HERMES, '<tool_call>{"name": "time.now"}</tool_call>').calls == [ToolCall("id0", "time.now", "{}")]


def test_a_call_is_withheld_until_its_id_after_the_arguments() -> None:
    text = '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "x"}, "id": "abc"}]'
    assert said_in(FORMS[2], "</think>" + text).calls == [ToolCall("abc", "get_weather", '{"city": "x"}')]


@pytest.mark.parametrize(
    ("value", "shown"), [("5", "5"), ("True", "true"), ("['a']", '["a"]'), ("many", '"many"'), ('{"x": 1}', '{"x": 1}')]
)
def test_arguments_that_are_no_strings_are_converted_to_json(value: str, shown: str) -> None:
    text = f"<tool_call><function=get_weather><parameter=days>\n{value}\n</parameter></function></tool_call>"
    assert said_in(FORMS[4], text).calls[0].arguments == '{"days":' + shown + "}"


def test_arguments_truncated_by_a_limit_are_not_closed() -> None:
    text = "<tool_call><function=get_weather><parameter=city>\nOs"
    assert said_in(FORMS[4], text, truncated=True).calls[0].arguments == '{"city":"Os'
    assert said_in(FORMS[4], text).calls[0].arguments == '{"city":"Os"}'


def test_a_call_may_end_reasoning() -> None:
    text = "hm <tool_call><function=time.now></function></tool_call>"
    assert said_in(FORMS[4], text, opening="<think>\n") == ParsedMessage("", "hm", [ToolCall("id0", "time.now", "{}")])


ANALYSIS = "<|channel|>analysis<|message|>I'm\nthinking<|end|><|start|>assistant"
ARGUMENTS = '<|message|>{"city": "x"}'
CITY = [ToolCall("id0", "get_weather", '{"city": "x"}')]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<|channel|>final<|message|>Hello", ParsedMessage("Hello")),
        ("<|channel|>commentary<|message|>Hello", ParsedMessage("Hello")),
        (ANALYSIS + "<|channel|>final<|message|>Hello", ParsedMessage("Hello", "I'm\nthinking")),
        (
            ANALYSIS + "<|channel|>commentary to=assistant<|channel|>final<|message|>Hello",
            ParsedMessage("Hello", "I'm\nthinking"),
        ),
        ("<|channel|>analysis<|message|>on and", ParsedMessage("", "on and")),
        (" to=functions.get_weather<|channel|>analysis" + ARGUMENTS, ParsedMessage("", "", CITY)),
        ("<|channel|>commentary to=functions.get_weather <|constrain|>json" + ARGUMENTS, ParsedMessage("", "", CITY)),
        (
            ANALYSIS + " to=functions.get_weather<|channel|>commentary json" + ARGUMENTS,
            ParsedMessage("", "I'm\nthinking", CITY),
        ),
        (
            ANALYSIS + "<|channel|>commentary to=python <|constrain|>code<|message|>print(1)",
            ParsedMessage("", "I'm\nthinking"),
        ),
        ("no channel at all", ParsedMessage("no channel at all")),
    ],
)
def test_gpt_oss_channels_are_parsed(text: str, said: ParsedMessage) -> None:
    assert said_in(GPT_OSS, text) == said
    assert parsed(GPT_OSS, list(text))[0] == said


LFM = AnswerFormat(calls=LFM2)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('A<|tool_call_start|>[get_weather(city="x")]<|tool_call_end|>', "A", [{"city": "x"}]),
        (
            "<|tool_call_start|>[get_weather(city='(\\n)', days=True, units=[null, {\"a\": 1.5}])"
            ", time.now()]<|tool_call_end|>",
            "",
            [{"city": "(\n)", "days": True, "units": [None, {"a": 1.5}]}, {}],
        ),
        ("<|tool_call_start|>[get_weather('a\nb', 2)]<|tool_call_end|>", "", [{"city": "a\nb", "days": 2}]),
        ("<|tool_call_start|>[get_weather(city=)]<|tool_call_end|>", "", ["(city=)"]),
        ("a [link](there)", "a [link](there)", []),
        ("<|tool_call_start|>[unknown(a=1)]", "<|tool_call_start|>[unknown(a=1)]", []),
    ],
)
def test_calls_in_python_syntax_are_parsed(text: str, content: str, calls: list[Any]) -> None:
    said = said_in(LFM, text)
    assert (said.content, [json.loads(call.arguments) for call in said.calls]) == (content, calls)
    for cut in range(len(text)):
        assert parsed(LFM, [text[:cut], text[cut:]])[0] == said


CALL_GEMMA = "<|tool_call>call:get_weather{%s}<tool_call|>"
M3 = "]<]minimax[>["


def called(arguments: str) -> ParsedMessage:
    return ParsedMessage(calls=[ToolCall("id0", "get_weather", arguments)])


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        (GEMMA_4, "<|channel>thought\nHm\n<channel|>Hi<|channel>thought\n<channel|>", ParsedMessage("Hi", "Hm")),
        (GEMMA_4, "Hi<channel|>", ParsedMessage("Hi")),
        (GEMMA_4, CALL_GEMMA % '<|"|>city<|"|>:<|"|>a:{b}<|"|>, days: -3', called('{"city":"a:{b}","days":-3}')),
        (GEMMA_4, CALL_GEMMA % "units:[1,[],{}],days:null", called('{"units":[1,[],{}],"days":null}')),
        (GEMMA_4, "<|tool_call>call:other{}<tool_call|>", ParsedMessage("<|tool_call>call:other{}<tool_call|>")),
        (KIMI_K3, "Hm<|close|>think<|sep|><|open|>response<|sep|>Hi<|close|>message<|sep|>", ParsedMessage("Hi", "Hm")),
        (KIMI_K3, "Hm<|open|>response<|sep|>Hi", ParsedMessage("Hi", "Hm")),
        (MUSE, " to=self<|message|>Hm<|eom|><|start|>assistant to=user<|message|>Hi<|eot|>", ParsedMessage("Hi", "Hm")),
        (MUSE, "<|message|>Hi", ParsedMessage("Hi")),
        (SOLAR, "<|think|>Hm<|end|><|begin|>assistant<|content|>Hi<|end|>", ParsedMessage("Hi", "Hm")),
        (MINIMAX_M3, "</mm:think>Hi", ParsedMessage("Hi")),
        (
            MINIMAX_M3,
            f'{M3}<tool_call>{M3}<invoke name="get_weather">{M3}<days>3{M3}</days>{M3}<units>{M3}<item>'
            f"{M3}<units>x{M3}</units>{M3}</item>{M3}</units>{M3}<city>{M3}</city>{M3}</invoke>{M3}</tool_call>",
            called('{"days":3,"units":[{"units": "x"}],"city":""}'),
        ),
    ],
)  # fmt: skip
def test_answers_of_newer_families_are_parsed(form: AnswerFormat, text: str, said: ParsedMessage) -> None:
    opening = "<|open|>think<|sep|>" if form is KIMI_K3 else ""
    assert said_in(form, text, opening=opening) == said
    assert parsed(form, list(text), opening=opening)[0] == said


EARLIER_GEMMA = """\
{% for m in messages %}{{ m.role }}{% for c in m.tool_calls or [] %}<|tool_call>{{ c.function.name }}{% endfor %}\
{% for r in m.tool_responses or [] %}({{ r.name }}: {{ r.response | tojson }}){% endfor %}\
{{ m.content }}<turn|>
{% endfor %}"""


def test_results_are_moved_into_the_call_message_for_early_gemma_templates() -> None:
    def call(id: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": f"f{id}", "arguments": "{}"}}

    messages: list[Any] = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call("1"), call("2")]},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "content": '{"a": 1}'},
        {"role": "assistant", "content": "Answer"},
        {"role": "assistant", "content": "", "tool_calls": [call("3")]},
        {"role": "tool", "tool_call_id": "3", "content": "three"},
    ]
    request = read_chat({"messages": messages}, ChatDefaults())
    text = ChatFormat(EARLIER_GEMMA).render(request, lambda *_: None).text
    assert text == (
        "userQuestion<turn|>\n"
        'assistant<|tool_call>f1<|tool_call>f2(f2: "two")(f2: {"a": 1})Answer<turn|>\n'
        'assistant<|tool_call>f3(f3: "three")<turn|>\n<|turn>model\n'
    )


ALTERNATING = """\
{% set ns = namespace(last='assistant') %}{% for m in messages %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{%- if m.role == ns.last %}{{ raise_exception('roles must alternate') }}{% endif %}{% set ns.last = m.role %}{% endif %}
{%- if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call at once') }}{% endif %}
{{- m.role }}: {{ m.content }}
{%- for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments }}>{% endfor %};
{% endfor %}"""


def test_conversations_are_adapted_to_templates_with_alternating_roles() -> None:
    def call(id: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": f"f{id}", "arguments": "{}"}}

    messages: list[Any] = [
        USER,
        {"role": "assistant", "content": "Both.", "tool_calls": [call("1"), call("2")]},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "user", "content": "Reminder"},
        {"role": "assistant", "content": "Answer"},
    ]
    request = read_chat({"messages": messages}, ChatDefaults(prefill_assistant=False))
    text = ChatFormat(ALTERNATING).render(request, lambda *_: None).text
    assert text.replace("{}", "").splitlines() == [
        "user: Question;", "assistant: Both.<f1 >;", "tool: one;", "assistant: <f2 >;", "tool: two", "", "Reminder;",
        "assistant: Answer;",
    ]  # fmt: skip


def test_a_value_in_cdata_may_contain_its_end_mark() -> None:
    _, form = format_of("cdata")
    text = '<function name="get_weather"><param name="city"><![CDATA[a</param>\n]]></param></function>'
    assert said_in(form, text).calls == [ToolCall("id0", "get_weather", '{"city":"a</param>\\n"}')]


def test_arguments_of_newer_families_are_streamed() -> None:
    _, deltas = parsed(GEMMA_4, ["<|tool_call>call:get_weather{ci", "ty:<|", '"|>Os', 'lo<|"', "|>,days:3", "}"])
    assert [delta.text for delta in deltas if isinstance(delta, ToolCallArguments)] == [
        "{", '"city":', '"', "Os", "lo", '"', ",", '"days":', "3", "}",
    ]  # fmt: skip


def test_gpt_oss_analysis_is_content_without_separate_reasoning() -> None:
    text = ANALYSIS + "<|channel|>final<|message|>Hello"
    assert (
        said_in(GPT_OSS, text, separate_reasoning=False).content
        == ANALYSIS.removesuffix("<|start|>assistant") + "Hello"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("all\nHello\nyou", ParsedMessage("Hello\nyou")),
        ('get_weather\n{"city": "x"}', ParsedMessage("", "", CITY)),
        ('all\nHi>>>get_weather\n{"city": "x"}\n', ParsedMessage("Hi", "", CITY)),
        ("odd\ntext", ParsedMessage("odd\ntext")),
    ],
)
def test_functionary_recipients_are_parsed(text: str, said: ParsedMessage) -> None:
    assert said_in(FUNCTIONARY_3_2, text) == said
    assert parsed(FUNCTIONARY_3_2, list(text))[0] == said


MIXED = {"properties": {"x": {"anyOf": [{"enum": ["auto", "5", None]}, {"$ref": "#/$defs/n"}]}}, "$defs": {
    "n": {"type": ["integer", "boolean"]}}}  # fmt: skip


@pytest.mark.parametrize(
    ("written", "read"),
    [("auto", "auto"), ("5", "5"), ("null", None), ("7", 7), ("true", True), ("other", "other")],
)
@pytest.mark.parametrize("name", ["coder", "glm", "cdata", "minimax3"])
def test_only_listed_texts_are_strings_if_other_values_are_allowed(name: str, written: str, read: object) -> None:
    _, form = format_of(name)
    tool = FunctionTool("f", "", MIXED, {})
    text = turn_of_one_argument(name, written)
    parser = AnswerParser(form, [tool])
    said = ParsedMessage()
    for deltas in ([delta for letter in text for delta in parser.add(letter)], parser.end(truncated=False)):
        said.add(deltas)
    assert [json.loads(call.arguments) for call in said.calls] == [{"x": read}]


def turn_of_one_argument(name: str, text: str) -> str:
    template = ChatTemplate(chat_templates.ALL[name], "<s>", "</s>")
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": {"x": text}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    shown = template.render([USER, message], add_generation_prompt=False, tools=OFFERED)
    return shown.rpartition("<|role|>assistant\n")[2].rpartition("<|end|>")[0]


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"tools": {}},
        {"tools": [5]},
        {"tools": [{"function": {"name": "f"}}]},
        {"tools": [{"type": "retrieval"}]},
        {"tools": [{"type": "function", "function": {}}]},
        {"tools": OFFERED, "tool_choice": "sometimes"},
        {"tools": OFFERED, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": OFFERED, "grammar": 'root ::= "x"'},
        {"tools": OFFERED, "parallel_tool_calls": "yes"},
    ],
)
def test_invalid_tools_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        read_tools(Fields(body))


def test_tool_choice_limits_the_usable_tools() -> None:
    by_name = read_tools(
        Fields({"tools": OFFERED, "tool_choice": {"type": "function", "function": {"name": "time.now"}}})
    )
    assert (by_name.choice, [tool.name for tool in by_name.usable]) == ("required", ["time.now"])
    assert len(by_name.shown) == 2
    assert read_tools(Fields({"tools": OFFERED, "tool_choice": "none"})).usable == ()
    assert read_tools(Fields({"tools": None})).offered == ()


@pytest.mark.parametrize(
    ("schema", "is_text"),
    [
        ({"type": "string"}, True), ({"type": "integer"}, False), ({"type": ["null", "string"]}, True), ({}, False),
        ({"enum": ["a"]}, True), ({"const": 5}, False), ({"anyOf": [{"type": "null"}, {"type": "string"}]}, True),
    ],
)  # fmt: skip
def test_arguments_are_strings_by_their_schema(schema: dict[str, Any], is_text: bool) -> None:
    tool = FunctionTool("f", "", {"properties": {"x": schema}}, {})
    assert tool.texts("x").may_be_text == is_text
    assert tool.texts("unknown").is_text
