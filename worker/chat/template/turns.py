"""Find where messages begin in a rendered prompt: the text that a template writes before user and tool messages.

The template renders short conversations for this, once; no error is raised. Prompts are split there, so that the engine
can save a checkpoint before the user's message, where the conversation's next prompt continues.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from .capabilities import Capabilities, Message
from .probes import FIRST_TAG, IDS, KEYS, NAMES, SAID, VALUES, shared_length, tool
from .template import ChatTemplate, TemplateError

_FIRST, _SECOND = "Probeasked", "Probeagain"
_LONGEST = 100  # characters; longer text is no delimiter


class TurnDelimiter(Struct, frozen=True):
    role: Literal["user", "tool"]
    text: str


def detect_delimiters(template: ChatTemplate, capabilities: Capabilities) -> tuple[TurnDelimiter, ...]:
    """Return the delimiters; tool before user, since a tool's delimiter may begin with the user's."""

    def said(role: str, text: str, **more: Any) -> Message:
        takes_text = capabilities.supports_string_content
        return {"role": role, "content": text if takes_text else [{"type": "text", "text": text}], **more}

    turn = [said("user", _FIRST), said("assistant", SAID)]
    first, between = _around(template, turn, said("user", _SECOND))
    user = _opening(first, between)
    if not user:
        return ()
    values: Any = {KEYS[0]: VALUES[0]}
    arguments = values if capabilities.supports_object_arguments else json.dumps(values)
    call = {"id": IDS[0], "type": "function", "function": {"name": NAMES[0], "arguments": arguments}}
    called = [said("user", _FIRST), said("assistant", "", tool_calls=[call])]
    _, before_result = _around(template, called, said("tool", _SECOND, tool_call_id=IDS[0], name=NAMES[0]), tools=True)
    at = before_result.rfind(user)
    of_tool = before_result[at:].strip() if at >= 0 else ""
    found = [TurnDelimiter("user", user)]
    return (TurnDelimiter("tool", of_tool), *found) if of_tool not in ("", user) else tuple(found)


def _around(
    template: ChatTemplate, before: Sequence[Message], message: Message, *, tools: bool = False
) -> tuple[str, str]:
    """Return the text before the first message, and the text before `message` without the end of the previous turn."""
    offered = [tool(NAMES[0])] if tools else None
    try:
        shorter = template.render(before, add_generation_prompt=False, tools=offered)
        longer = template.render([*before, message], add_generation_prompt=False, tools=offered)
    except TemplateError:
        return "", ""
    whole, found, _ = longer.partition(_SECOND)
    if not found:
        return "", ""
    closing, between = shorter.rpartition(SAID)[2], whole.rpartition(SAID)[2]
    if SAID not in whole:
        closing, between = shorter, whole
    n = shared_length(closing, between)
    unclosed = re.search(r"(<[^<>]*|\[[A-Z_/]+)$", between[:n])
    return longer.partition(_FIRST)[0], between[unclosed.start() if unclosed else n :]


def _opening(first: str, between: str) -> str:
    """Return the common suffix of both texts, without end marks."""
    n = shared_length(first[::-1].rstrip(), between[::-1].rstrip()) if first.rstrip() else 0
    both = between.rstrip()[-n:] if n else between
    both = re.sub(r"^[^<>]*>(?=.*<)", "", both, flags=re.DOTALL)  # an incomplete mark
    while (mark := FIRST_TAG.match(both)) and re.search("end|close|eos", mark.group(), re.IGNORECASE):
        rest = both[mark.end() :]
        if not rest.strip():
            break
        both = rest
    return both.strip() if len(both) < _LONGEST else ""
