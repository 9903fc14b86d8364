"""Detect what a chat template supports: render short conversations and search their marks in the prompt.

Done once, after the model is loaded. Shown as `chat_template_caps` in `/props` and used to convert messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from .template import ChatTemplate, TemplateError

MARK = "<<mark-of-the-probe>>"
Message = dict[str, Any]
USER: Message = {"role": "user", "content": "Question"}
TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A tool",
        "parameters": {
            "type": "object",
            "properties": {"argument": {"type": "string", "description": "An argument"}},
            "required": ["argument"],
        },
    },
}


class Capabilities(Struct, frozen=True):
    supports_string_content: bool = True
    supports_typed_content: bool = False
    supports_system_role: bool = True
    supports_tools: bool = False
    supports_tool_calls: bool = False
    supports_parallel_tool_calls: bool = False
    supports_object_arguments: bool = False
    supports_preserve_reasoning: bool = False
    supports_reasoning_effort: bool = False


def probe(template: ChatTemplate) -> Capabilities:
    """Return the capabilities of a template. Raises nothing."""
    text = _try(template, [{"role": "user", "content": MARK}])
    parts = _try(template, [{"role": "user", "content": [{"type": "text", "text": MARK}]}])
    takes_text = text is not None and MARK in text
    takes_parts = parts is not None and MARK in parts and not _shows_structure(parts)
    system = {"role": "system", "content": MARK if takes_text else [{"type": "text", "text": MARK}]}
    user = _user(takes_text=takes_text)
    objects = _takes_calls(template, user, _OBJECT)
    calls = objects or _takes_calls(template, user, _TEXT)
    return Capabilities(
        supports_string_content=takes_text or not takes_parts,
        supports_typed_content=takes_parts,
        supports_system_role=MARK in (_try(template, [system, user]) or ""),
        supports_tools="probe_tool" in (_try(template, [user], tools=[TOOL]) or ""),
        supports_tool_calls=calls,
        supports_parallel_tool_calls=calls and _takes_calls(template, user, _OBJECT if objects else _TEXT, n=2),
        supports_object_arguments=objects,
        supports_preserve_reasoning=_preserves_reasoning(template, user),
        supports_reasoning_effort=_effort(template, user, "low") != _effort(template, user, "high"),
    )


def _user(*, takes_text: bool) -> Message:
    return USER if takes_text else {"role": "user", "content": [{"type": "text", "text": "Question"}]}


def _try(template: ChatTemplate, messages: Sequence[Message], **more: Any) -> str | None:
    try:
        return template.render(messages, add_generation_prompt=True, **more)
    except TemplateError:
        return None


def _shows_structure(prompt: str) -> bool:
    """Return True if the list of parts was printed as Python or JSON, so the template does not support it."""
    return any(sign in prompt for sign in ("{'type'", '{"type"', "&#39;type&#39;"))


_OBJECT = {"argument": MARK}
_TEXT = '{"argument": "' + MARK + '"}'


def _takes_calls(template: ChatTemplate, user: Message, arguments: Any, n: int = 1, id: str = "call0000") -> bool:
    calls = [
        {"id": f"{id}{i}", "type": "function", "function": {"name": f"probe_call_{i}", "arguments": arguments}}
        for i in range(n)
    ]
    prompt = _try(
        template,
        [
            user,
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "Result", "tool_call_id": f"{id}0", "name": "probe_call_0"},
            {"role": "assistant", "content": "Answer"},
            user,
        ],
        tools=[TOOL],
    )
    return prompt is not None and MARK in prompt and f"probe_call_{n - 1}" in prompt


def takes_user_after_result(template: ChatTemplate, capabilities: Capabilities) -> bool:
    """Return False if a user message directly after a tool result fails: some templates require strict alternation."""
    user = _user(takes_text=capabilities.supports_string_content)
    arguments: Any = {"argument": "x"} if capabilities.supports_object_arguments else '{"argument": "x"}'
    function = {"name": "probe_tool", "arguments": arguments}
    call = {"id": "call00000", "type": "function", "function": function}
    messages = [
        user,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Result", "tool_call_id": "call00000", "name": "probe_tool"},
    ]
    if _try(template, messages, tools=[TOOL]) is None:
        return True  # the user message is not the cause
    return _try(template, [*messages, user], tools=[TOOL]) is not None


def takes_any_call_id(template: ChatTemplate, capabilities: Capabilities) -> bool:
    """Return False if only calls with ids of nine letters and digits are shown, and others fail."""
    arguments = _OBJECT if capabilities.supports_object_arguments else _TEXT
    user = _user(takes_text=capabilities.supports_string_content)
    return not capabilities.supports_tool_calls or _takes_calls(template, user, arguments, id="call_of-a-longer_form_")


def takes_text_arguments(template: ChatTemplate, capabilities: Capabilities) -> bool:
    """Return True if the template shows arguments that are no object but a text, such as the half of a JSON text."""
    return _takes_calls(template, _user(takes_text=capabilities.supports_string_content), '{"argument": "' + MARK)


def _preserves_reasoning(template: ChatTemplate, user: Message) -> bool:
    said = {"role": "assistant", "content": "Answer", "reasoning_content": MARK}
    messages = [user, said, user, {"role": "assistant", "content": "Answer"}, user]
    return MARK in (_try(template, messages, variables=preserve_reasoning(True)) or "")


def preserve_reasoning(enabled: bool) -> Mapping[str, bool]:
    """Return the variables by which different templates decide whether earlier reasoning is kept."""
    return {
        "preserve_thinking": enabled,
        "clear_thinking": not enabled,
        "truncate_history_thinking": not enabled,
        "drop_thinking": not enabled,
    }


def _effort(template: ChatTemplate, user: Message, effort: str) -> str | None:
    return _try(template, [user], variables={"reasoning_effort": effort, "reasoning_strength": effort})
