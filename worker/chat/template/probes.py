"""Render short conversations with a template, to find out which text it writes at which place.

The probe texts do not occur in any template. Used by the detectors; raises nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .capabilities import Capabilities
from .template import ChatTemplate, TemplateError

Message = dict[str, Any]

SAID, THOUGHT = "Probesaid", "Probethought"
NAMES = ("probe_first", "probe_second")
IDS = ("call00001", "call00002")
KEYS = ("probe_alpha", "probe_beta")
VALUES = ("Probeone", "Probetwo")
TAG = r"<[^<>\s][^<>]*>|\[/?[A-Z][A-Z_]*\]"
LAST_TAG = re.compile(rf"(?:{TAG})\s*$")
FIRST_TAG = re.compile(rf"\s*(?:{TAG})")


class Probes:
    """Render an assistant's turn: the text after the prompt."""

    def __init__(self, template: ChatTemplate, capabilities: Capabilities) -> None:
        self.source = template.source
        self._template, self._capabilities = template, capabilities
        self._user = {"role": "user", "content": self._text("Question")}

    def _text(self, text: str) -> Any:
        return text if self._capabilities.supports_string_content else [{"type": "text", "text": text}]

    def _render(self, messages: Sequence[Message], opens: bool, thinks: bool = True, tools: bool = True) -> str:
        return self._template.render(
            messages,
            add_generation_prompt=opens,
            tools=[tool(name) for name in NAMES] if tools else None,
            variables={"enable_thinking": thinks, "thinking": thinks},
        )

    def opening(self, *, thinks: bool) -> str:
        """Return the generation prompt; "" if the template fails."""
        try:
            closed = self._render([self._user], False, thinks, tools=False)
            opened = self._render([self._user], True, thinks, tools=False)
        except TemplateError:
            return ""
        return opened[shared_length(closed, opened) :]

    def turn(self, content: str = "", *, tools: bool = True, more: Mapping[str, Any] = MappingProxyType({})) -> str:
        """Return the text of an assistant message; "" if the template refuses it."""
        message = {"role": "assistant", "content": self._text(content), **more}
        try:
            before = self._render([self._user], False, tools=tools)
            whole = self._render([self._user, message], False, tools=tools)
        except TemplateError:
            return ""
        return whole[shared_length(before, whole) :]

    def calls(self, n_calls: int, n_arguments: int) -> str:
        """Return the text of an assistant message with tool calls."""
        calls = []
        for i in range(n_calls):
            values: Any = {key: f"{value}{i}" for key, value in zip(KEYS[:n_arguments], VALUES, strict=False)}
            if not self._capabilities.supports_object_arguments:
                values = json.dumps(values)
            calls.append({"id": IDS[i], "type": "function", "function": {"name": NAMES[i], "arguments": values}})
        return self.turn(more={"tool_calls": calls}) or self.turn(SAID, more={"tool_calls": calls})


def tool(name: str) -> Message:
    properties = {key: {"type": "string", "description": key} for key in KEYS}
    parameters = {"type": "object", "properties": properties, "required": list(KEYS)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def shared_length(a: str, b: str) -> int:
    """Return the length of the common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # the first `low` characters are equal; prompts are too long for a loop over characters
        middle = (low + high + 1) // 2
        if a.startswith(b[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def tag_of(match: re.Match[str] | None) -> str:
    return match.group().strip() if match else ""
