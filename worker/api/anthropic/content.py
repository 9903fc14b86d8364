"""Converts Anthropic's messages and content blocks to chat messages and content parts. Pure.

One Anthropic message may become several chat messages: each tool result is a separate one. Consecutive messages of the
same role are merged into one turn, as Anthropic does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields, json_type

from ..foreign_items import shown_call, shown_result

Message = dict[str, Any]
Part = dict[str, Any]
Content = str | list[Part]

FOREIGN_CALLS = ("server_tool_use", "mcp_tool_use", "container_upload")
FOREIGN_RESULTS = "_tool_result"
"""The ends of the types of blocks with calls that Anthropic's servers made, and with their results."""


def read_system(value: object, normalized: Callable[[str], str]) -> Content:
    if value is None:
        return ""
    if isinstance(value, str):
        return normalized(value)
    parts = [part for where, block in _blocks(value, "system") for part in _parts(block, where, ("text",))]
    return _simplest([{**part, "text": normalized(part["text"])} for part in parts])


def read_messages(value: object) -> list[Message]:
    if not isinstance(value, list):
        raise InvalidRequest(f"Field 'messages': type must be array, but is {json_type(value)}")
    messages: list[Message] = []
    names: dict[str, str] = {}
    for i, item in enumerate(value):
        for message in _read_message(item, f"messages[{i}]", names):
            if message["role"] == "system" and any(earlier["role"] != "system" for earlier in messages):
                message = _as_reminder(message)
            add_turn(messages, message)
    return messages


def add_turn(messages: list[Message], message: Message) -> None:
    if messages and message["role"] == messages[-1]["role"] != "tool":
        _join(messages[-1], message)
    else:
        messages.append(message)


def _as_reminder(message: Message) -> Message:
    """Convert a system message in the middle of a conversation to a user message.

    Coding agents send such messages, but most templates refuse them.
    """
    content = [*_text("<system-reminder>"), *_as_parts(message["content"]), *_text("</system-reminder>")]
    return {"role": "user", "content": content}


def _read_message(item: object, where: str, names: dict[str, str]) -> list[Message]:
    """Convert one message. `names`: the function names of the calls so far, by call id."""
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise InvalidRequest(f"{where}: must be an object with a 'role'")
    role, content = item["role"], item.get("content")
    if content is None and role == "assistant":
        return []
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    turn = _TurnBuilder(role, names)
    for place, block in _blocks(content, f"{where}.content"):
        turn.read(block, place)
    return turn.messages()


class _TurnBuilder:
    """Collects the blocks of one message by the parts of a chat message that they become."""

    def __init__(self, role: str, names: dict[str, str]) -> None:
        self._role = role
        self._names = names
        self._parts: list[Part] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._results: list[Message] = []
        self._earlier: list[Message] = []

    def read(self, block: Fields, where: str) -> None:
        match block.string("type", default=""):
            case "thinking":
                self._thoughts.append(block.string("thinking", default=""))
            case "redacted_thinking":
                pass  # encrypted: only Anthropic can read it
            case "tool_use" if self._role == "assistant":
                self._calls.append(self._call(block))
            case "compaction":
                self._parts += _text(block.string("content", default=""))
            case kind if kind.endswith(FOREIGN_CALLS):
                self._parts += _text(shown_call(block.body))
            case kind if kind.endswith(FOREIGN_RESULTS):
                self._show_result(shown_result(block.body))
            case "tool_result":
                self._results.append(self._result(block, where))
            case _:
                self._parts += _parts(block, where, ("text", "image", "document", "search_result"))

    def _call(self, block: Fields) -> dict[str, Any]:
        id, name = block.string("id", default=""), block.string("name", default="")
        self._names[id] = name
        arguments = json.dumps(block.object("input"), ensure_ascii=False)
        return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _result(self, block: Fields, where: str) -> Message:
        id = block.string("tool_use_id", default="")
        content = _read_result(block.body.get("content"), f"{where}.content")
        if block.boolean("is_error", default=False):
            content = _as_error(content)
        message = {"role": "tool", "tool_call_id": id, "content": content}
        return {**message, "name": self._names[id]} if self._names.get(id) else message

    def _show_result(self, text: str) -> None:
        """Show the result of a call that the message itself contains. It is a message of the user, not of the model:
        a web page may be in it."""
        if not text:
            return
        if self._role != "user":
            self._earlier += self._said(())
            self._parts, self._thoughts = [], []
            self._earlier.append({"role": "user", "content": text})
        else:
            self._parts += _text(text)

    def messages(self) -> list[Message]:
        """Return the chat messages: tool results first, since they belong to the preceding calls."""
        return [*self._results, *self._earlier, *self._said(self._calls)]

    def _said(self, calls: Sequence[dict[str, Any]]) -> list[Message]:
        if not self._parts and not calls and not self._thoughts:
            return []
        message: Message = {"role": self._role, "content": _simplest(self._parts)}
        if calls:
            message["tool_calls"] = list(calls)
        if thoughts := "".join(self._thoughts):
            message["reasoning_content"] = thoughts
        return [message]


def _read_result(content: object, where: str) -> Content:
    if content is None or isinstance(content, str):
        return content or ""
    kinds = ("text", "image", "document", "search_result", "tool_reference")
    parts = [part for place, block in _blocks(content, where) for part in _parts(block, place, kinds)]
    return _simplest(parts)


def _as_error(content: Content) -> Content:
    """Mark a tool result as an error. Chats have no field for this: prefix "Error", unless the text already says it."""
    if isinstance(content, list):
        return [{"type": "text", "text": "Error:"}, *content]
    if "error" in content[:40].lower():
        return content
    return f"Error: {content}" if content else "Error"


def _blocks(content: object, where: str) -> list[tuple[str, Fields]]:
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}: must be a string or an array of blocks, but is {json_type(content)}")
    for i, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequest(f"{where}[{i}]: must be an object with a 'type'")
    return [(f"{where}[{i}]", Fields(block)) for i, block in enumerate(content)]


def _parts(block: Fields, where: str, kinds: tuple[str, ...]) -> list[Part]:
    kind = block.string("type", default="")
    if kind not in kinds:
        raise InvalidRequest(f"{where}: blocks of type '{kind}' are not supported here")
    match kind:
        case "image":
            return [_image(Fields(block.object("source")), f"{where}.source")]
        case "document":
            return _document(block, where)
        case "search_result":
            head = [block.string(name, default="") for name in ("title", "source")]
            return _titled(head, _inner(block.body.get("content"), f"{where}.content"))
        case "tool_reference":
            return _text(block.string("tool_name", default=""))
    return _text(block.string("text", default=""))


def _text(text: str) -> list[Part]:
    return [{"type": "text", "text": text}] if text else []


def _image(source: Fields, where: str) -> Part:
    match source.string("type", default=""):
        case "base64":
            kind = source.string("media_type", default="image/jpeg")
            url = f"data:{kind};base64,{source.string('data', default='')}"
        case "url":
            url = source.string("url", default="")
        case other:
            raise InvalidRequest(f"{where}.type: must be base64 or url, but is '{other}'")
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Fields, where: str) -> list[Part]:
    source = Fields(block.object("source"))
    head = [block.string(name, default="") for name in ("title", "context")]
    match source.string("type", default=""):
        case "text":
            return _titled(head, _text(source.string("data", default="")))
        case "content":
            return _titled(head, _inner(source.body.get("content"), f"{where}.source.content"))
        case other:
            raise InvalidRequest(f"{where}.source.type: must be text or content, but is '{other}'")


def _inner(content: object, where: str) -> list[Part]:
    if isinstance(content, str):
        return _text(content)
    return [part for place, block in _blocks(content, where) for part in _parts(block, place, ("text", "image"))]


def _titled(head: list[str], parts: list[Part]) -> list[Part]:
    return [part for line in head for part in _text(line)] + parts


def _simplest(parts: list[Part]) -> Content:
    """Return a single text part as a string: not all templates accept lists."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _join(message: Message, more: Message) -> None:
    message["content"] = _simplest([*_as_parts(message["content"]), *_as_parts(more["content"])])
    if calls := more.get("tool_calls"):
        message["tool_calls"] = [*message.get("tool_calls", ()), *calls]
    if thoughts := more.get("reasoning_content"):
        message["reasoning_content"] = message.get("reasoning_content", "") + thoughts


def _as_parts(content: Content) -> list[Part]:
    return _text(content) if isinstance(content, str) else content
