"""Detect how a model writes its answers: render short conversations with its template and find the marks.

An assistant's turn is rendered with reasoning, with one or two calls and one or two arguments; the text between the
probe's own words is the text that the model writes there. Done once for each template; raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from ..template.capabilities import Capabilities
from ..template.probes import FIRST_TAG, IDS, KEYS, LAST_TAG, NAMES, SAID, THOUGHT, Probes, tag_of
from ..template.template import ChatTemplate
from .call_detection import detect_calls
from .formats import NOTHING, AnswerFormat, Span


def detect(template: ChatTemplate, capabilities: Capabilities) -> AnswerFormat:
    """Return the detected format; parts that are not recognized are left empty."""
    probes = Probes(template, capabilities)
    reasoning, spacing = _reasoning(probes)
    form = AnswerFormat(reasoning, _content(probes, reasoning), detect_calls(probes, reasoning))
    return replace(form, spacing=spacing) if spacing else form


def _reasoning(probes: Probes) -> tuple[Span | None, tuple[str, str, str] | None]:
    """Return the marks of reasoning, and the white space around it if it can be detected.

    Renders an answer with reasoning and content, then one with reasoning and a call: some templates keep only that.
    """
    call = {"id": IDS[0], "type": "function", "function": {"name": NAMES[0], "arguments": {KEYS[0]: "x"}}}
    ways: list[Mapping[str, Any]] = [{}, {"tool_calls": [call]}]
    for more in ways:
        for name in ("reasoning_content", "thinking", "reasoning"):
            before, found, behind = probes.turn(SAID, more={**more, name: THOUGHT}).partition(THOUGHT)
            end = FIRST_TAG.match(behind)
            if found and end and (more or SAID in behind[end.end() :]):
                span = Span(tag_of(LAST_TAG.search(before)), tag_of(end))
                return span, _spacing(span, before, behind)
    found_span = _reasoning_of_prompt(probes)
    return found_span, _spacing_of_prompt(probes, found_span) if found_span else None


def _spacing(span: Span, before: str, behind: str) -> tuple[str, str, str]:
    """Return the white space in a rendered turn. After reasoning before a call it is a guess."""
    begin = before[len(before.rstrip()) :]
    end, _, content = behind.partition(span.end)
    between = content.partition(SAID)[0]
    return begin, end, between if not between.strip() else "\n\n" if begin or end else ""


def _spacing_of_prompt(probes: Probes, span: Span) -> tuple[str, str, str] | None:
    """Return no white space at all if the prompt has none after the start mark of reasoning; else None."""
    opening = probes.opening(thinks=True)
    return ("", "", "") if span.start and opening.endswith(span.start) else None


def _reasoning_of_prompt(probes: Probes) -> Span | None:
    """Find the marks in templates that omit reasoning in the history, but open it or split the text at its end mark."""
    opening = probes.opening(thinks=True) + probes.opening(thinks=False)
    for start, end in (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")):
        if start in opening or re.search(rf"split\(\s*['\"]{re.escape(end)}['\"]", probes.source):
            return Span(start, end)
    return None


def _content(probes: Probes, reasoning: Span | None) -> Span:
    """Return the marks around content, if there are any."""
    turn = probes.turn(SAID, tools=False)
    start, end = LAST_TAG.search(turn.partition(SAID)[0]), FIRST_TAG.match(turn.partition(SAID)[2])
    opening = probes.opening(thinks=False)
    if not start or not end or tag_of(start) in opening or (reasoning and tag_of(start) in reasoning.marks):
        return NOTHING
    names = [re.sub(r"\W|START|END|BEGIN", "", tag_of(tag).upper()) for tag in (start, end)]
    return Span(tag_of(start), tag_of(end)) if names[0] and names[0] == names[1] else NOTHING
