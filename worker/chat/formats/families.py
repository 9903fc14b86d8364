"""Select an answer format by a mark in the template, if rendering cannot show it; else detect it."""

from __future__ import annotations

from msgspec.structs import replace

from ..template.capabilities import Capabilities
from ..template.template import ChatTemplate
from .channel_marks import ANALYSIS, CHANNEL, CONSTRAIN, END, EOM, FINAL, HARMONY_MARKS, MESSAGE, RECIPIENT, START, TURN
from .detection import detect
from .formats import AnswerFormat, DictCalls, ElementCalls, JsonCalls, Parameters, PythonCalls, Span, TaggedCalls


def answer_format(template: ChatTemplate, capabilities: Capabilities) -> AnswerFormat:
    """Return the known or detected answer format of a template."""
    return _known_format(template.source) or _corrected(detect(template, capabilities), template.source)


def _known_format(source: str) -> AnswerFormat | None:
    if "[SYSTEM_PROMPT]" in source and "[TOOL_CALLS]" in source and "[ARGS]" in source and "[CALL_ID]" not in source:
        thinks = Span("[THINK]", "[/THINK]") if "[THINK]" in source else None
        calls = TaggedCalls(call=Span("[TOOL_CALLS]"), name=Span("", "[ARGS]"))
        return AnswerFormat(thinks, calls=calls, spacing=_NO_BLANKS, loose=True)
    if "<|tool_calls_section_begin|>" in source and "<|tool_call_begin|>" in source:
        thinks = Span("<think>", "</think>") if "<think>" in source else None
        return AnswerFormat(thinks, calls=KIMI_K2)
    if "[BEGIN FINAL RESPONSE]" in source and "<|begin_assistant|>" in source:
        listed = JsonCalls(section=Span("<tool_calls>", "</tool_calls>"), array=True)
        return AnswerFormat(Span("", "[BEGIN FINAL RESPONSE]"), calls=listed)
    if "<|channel|>" in source:
        return GPT_OSS
    if ">>>all" in source and ">>>${recipient}" in source:
        return FUNCTIONARY_3_2
    if "<|tool_list_start|>" in source or "List of tools: [" in source:
        thinks = Span("<think>", "</think>") if "<think>" in source else None
        return AnswerFormat(thinks, calls=LFM2, spacing=_NO_BLANKS)
    found = next((form for mark, form in _BY_MARK.items() if mark in source), None)
    if found is GEMMA_4 and "tool_responses" in source and "OpenAI Chat Completions" not in source:
        return replace(GEMMA_4, responses_within=True)  # early template without tool messages
    return found


_NO_BLANKS = ("", "", "")
NAMESPACE = "]<]minimax[>["
"""The prefix of each tag of MiniMax M3."""
KIMI_K2 = TaggedCalls(
    section=Span("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    call=Span("<|tool_call_begin|>", "<|tool_call_end|>"),
    name=Span("", "<|tool_call_argument_begin|>"),
    id_is_name="functions.",
)

LFM2 = PythonCalls(Span("<|tool_call_start|>", "<|tool_call_end|>"))
GPT_OSS = AnswerFormat(
    Span(ANALYSIS, END),
    style="channels",
    spacing=("", "", ""),
    turn=TURN,
    before_content=FINAL,
    own_marks=HARMONY_MARKS,
    calls=TaggedCalls(
        name=Span(f"{CHANNEL}commentary to=functions.", f" {CONSTRAIN}json{MESSAGE}"),
    ),
)
FUNCTIONARY_3_2 = AnswerFormat(
    style="recipients", calls=TaggedCalls(name=Span("", "\n")), between_calls=f'"{RECIPIENT}"'
)

SOLAR = AnswerFormat(
    Span("<|think|>", "<|end|>"),
    Span("<|content|>", "<|end|>"),
    TaggedCalls(
        section=Span("<|tool_calls|>", "<|calls|>"),
        call=Span("<|tool_call:begin|>", "<|tool_call:end|>"),
        name=Span("<|tool_call:name|>", "<|tool_call:args|>"),
        id_first=True,
    ),
    skipped=("<|begin|>assistant",),
    spacing=("", "", ""),
    turn="<|begin|>assistant",
    before_content="<|content|>",
    own_marks=("<|begin|>",),
)

KIMI_K3 = AnswerFormat(
    Span("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    Span("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
    TaggedCalls(
        section=Span("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        call=Span('<|open|>call tool="', "<|close|>call<|sep|>"),
        name=Span("", '"'),
        name_rest="<|sep|>",
        number=Span(' index="', '"'),
        parameters=Parameters(
            Span('<|open|>argument key="', '"'),
            Span("", "<|close|>argument<|sep|>"),
            text_flag='type="string"',
            other_flags=tuple(f'type="{kind}"' for kind in ("number", "boolean", "object", "array", "null")),
            flags_end="<|sep|>",
        ),
    ),
    skipped=("<|close|>message<|sep|>", "<|end_of_msg|>"),
    spacing=("", "", ""),
    before_content="<|open|>response<|sep|>",
    before_calls='("<|open|>response<|sep|>"? "<|close|>response<|sep|>")?',
    own_marks=("<|open|>", "<|close|>", "<|sep|>"),
)

MUSE = AnswerFormat(
    Span(" to=self<|message|>", EOM),
    style="addressed",
    calls=TaggedCalls(
        section=Span("<atem:function_calls>", "</atem:function_calls>"),
        call=Span("", "</atem:invoke>"),
        name=Span('<atem:invoke name="', '">'),
        parameters=Parameters(Span('<atem:parameter name="', '">'), Span("", "</atem:parameter>")),
    ),
    spacing=("", "", ""),
    turn=TURN,
    before_content=" to=user<|message|>",
    before_calls='" to=" recipient "<|message|>"',
    between_calls='"<|eom|><|start|>assistant to=" recipient "<|message|>"',
    own_marks=(START, MESSAGE, EOM),
)

GEMMA_4 = AnswerFormat(
    Span("<|channel>thought", "<channel|>"),
    calls=DictCalls(Span("<|tool_call>", "<tool_call|>"), "call:", '<|"|>'),
    thinks_again=True,
    skipped=("<channel|>",),
    spacing=("\n", "", ""),
    reopens=("<turn|>\n", "<|turn>model\n"),
    own_marks=("<|channel>", '<|"|>'),
)

MINIMAX_M3 = AnswerFormat(
    Span("<mm:think>", "</mm:think>"),
    calls=ElementCalls(
        NAMESPACE,
        Span(f"{NAMESPACE}<tool_call>", f"{NAMESPACE}</tool_call>"),
        Span(f'{NAMESPACE}<invoke name="', '">'),
        Span("", f"{NAMESPACE}</invoke>"),
    ),
    spacing=("", "", ""),
    own_marks=(NAMESPACE, "<tool_call>", "</tool_call>"),
)

_GRANITE_3_3 = "respond only with <|tool_call|> followed by a JSON list"

_BY_MARK = {
    "<|tool_call:begin|>": SOLAR,
    "<|open|>": KIMI_K3,
    "<atem:": MUSE,
    "<|tool_call>": GEMMA_4,
    NAMESPACE: MINIMAX_M3,
    _GRANITE_3_3: AnswerFormat(
        Span("<think>", "</think>"), calls=JsonCalls(section=Span("<|tool_call|>"), array=True), spacing=_NO_BLANKS
    ),
}
"""Text that occurs only in the templates of one family."""


def _corrected(form: AnswerFormat, source: str) -> AnswerFormat:
    """Add the parts of a detected format that rendering does not show."""
    calls = form.calls
    if isinstance(calls, TaggedCalls) and calls.parameters and "dsml_token" in source:
        named = Span(calls.parameters.name.start, '"')
        parameters = Parameters(
            named, Span("", calls.parameters.value.end), text_flag='string="true"', other_flags=('string="false"',)
        )
        return replace(form, calls=replace(calls, parameters=parameters))
    if isinstance(calls, TaggedCalls) and calls.parameters and "<![CDATA[" in source:
        parameters = replace(calls.parameters, quote=Span("<![CDATA[", "]]>"))
        return replace(form, calls=replace(calls, parameters=parameters))
    if calls and "<|message_sep|>" in source:  # GigaChat ends each message with it, also a call's
        return replace(form, skipped=("<|message_sep|>",))
    if "<tool_call>" in source and "<function=" in source and "<parameter=" in source:
        return replace(form, calls_end_reasoning=True)
    return form
