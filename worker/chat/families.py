"""Formats known by a mark in the template, because rendering does not show them; all others are detected."""

from __future__ import annotations

import dataclasses

from .capabilities import Capabilities
from .channels import ANALYSIS, CHANNEL, CONSTRAIN, END, HARMONY_MARKS, MESSAGE
from .detection import detect
from .formats import AnswerFormat, JsonCalls, Parameters, PythonCalls, Span, TaggedCalls
from .template import ChatTemplate


def answer_format(template: ChatTemplate, capabilities: Capabilities) -> AnswerFormat:
    return _known(template.source) or _mended(detect(template, capabilities), template.source)


def _known(source: str) -> AnswerFormat | None:
    if "[SYSTEM_PROMPT]" in source and "[TOOL_CALLS]" in source and "[ARGS]" in source and "[CALL_ID]" not in source:
        thinks = Span("[THINK]", "[/THINK]") if "[THINK]" in source else None
        return AnswerFormat(thinks, calls=TaggedCalls(call=Span("[TOOL_CALLS]"), name=Span("", "[ARGS]")))
    if "<|tool_calls_section_begin|>" in source and "<|tool_call_begin|>" in source:
        thinks = Span("<think>", "</think>") if "<think>" in source else None
        return AnswerFormat(thinks, calls=KIMI_K2)
    if "[BEGIN FINAL RESPONSE]" in source and "<|begin_assistant|>" in source:
        calls = JsonCalls(section=Span("<tool_calls>", "</tool_calls>"), array=True)
        return AnswerFormat(Span("", "[BEGIN FINAL RESPONSE]"), calls=calls)
    if "<|channel|>" in source:
        return GPT_OSS
    if ">>>all" in source and ">>>${recipient}" in source:
        return FUNCTIONARY_3_2
    if "<|tool_list_start|>" in source or "List of tools: [" in source:
        return AnswerFormat(Span("<think>", "</think>") if "<think>" in source else None, calls=LFM2)
    if any(mark in source for mark in _UNREAD):
        return AnswerFormat()
    return None


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
    own_marks=HARMONY_MARKS,
    calls=TaggedCalls(
        name=Span(f"{CHANNEL}commentary to=functions.", f" {CONSTRAIN}json{MESSAGE}"),
    ),
)
FUNCTIONARY_3_2 = AnswerFormat(style="recipients", calls=TaggedCalls(name=Span("", "\n")))

_UNREAD = ("<|eom|>", "<|open|>", "<|tool_call>", "]<]minimax[>[")
"""Formats of their own, which nothing here reads yet: all of the answer is content."""


def _mended(form: AnswerFormat, source: str) -> AnswerFormat:
    """Where rendering shows less than the model writes."""
    calls = form.calls
    if isinstance(calls, TaggedCalls) and calls.parameters and "dsml_token" in source:
        named = Span(calls.parameters.name.start, '"')
        parameters = Parameters(named, Span("", calls.parameters.value.end), text_flag='string="true"')
        return dataclasses.replace(form, calls=dataclasses.replace(calls, parameters=parameters))
    if "<tool_call>" in source and "<function=" in source and "<parameter=" in source:
        return dataclasses.replace(form, calls_end_reasoning=True)
    return form
