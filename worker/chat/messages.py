"""Check the chat messages of a request and convert them to the form that the chat template supports.

Pure. Error messages and statuses follow llama-server, but a client's mistake is always 400, also where llama-server
returns 500.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_corral.common.base.errors import InvalidRequest

from .content import ContentReader, has_media, join_parts
from .template.capabilities import Capabilities

Message = dict[str, Any]


def read_messages(value: object, contents: ContentReader) -> list[Message]:
    """Return the request's messages with only the known fields. Raises InvalidRequest."""
    if not isinstance(value, list):
        raise InvalidRequest("Expected 'messages' to be an array")
    return [_read_message(item, contents) for item in value]


def _read_message(item: object, contents: ContentReader) -> Message:
    role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(item, dict) or ("content" not in item and role != "assistant"):
        raise InvalidRequest("All non-assistant messages must contain 'content'")
    if not isinstance(role, str):
        raise InvalidRequest("Missing 'role' in message" if role is None else "Expected 'role' to be a string")
    if "content" not in item and "tool_calls" not in item and not isinstance(item.get("refusal"), str):
        raise InvalidRequest("Assistant message must contain either 'content' or 'tool_calls'!")
    content = item.get("content")
    if role == "assistant" and not content and isinstance(refusal := item.get("refusal"), str):
        content = refusal  # OpenAI's answers have it in place of the content
    message: Message = {"role": role, "content": contents.read(content, takes_refusals=role == "assistant")}
    for name in ("reasoning_content", "name", "tool_call_id"):
        if (value := item.get(name)) is not None:
            if not isinstance(value, str):
                raise InvalidRequest(f"Expected '{name}' of a message to be a string")
            message[name] = value
    if calls := item.get("tool_calls"):
        if not isinstance(calls, list):
            raise InvalidRequest("Expected 'tool_calls' to be an array")
        message["tool_calls"] = [_read_call(call) for call in calls]
    return message


def _read_call(call: object) -> dict[str, Any]:
    if not isinstance(call, dict) or call.get("type", "function") != "function":
        raise InvalidRequest("Unsupported tool call type")
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest("Missing tool call name")
    arguments = function.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    id = call.get("id")
    if id is not None and not isinstance(id, str):
        raise InvalidRequest("Expected 'id' of a tool call to be a string")
    shown = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {**shown, "id": id} if id else shown


def shaped(
    messages: Sequence[Message], capabilities: Capabilities, *, keep_developer: bool, text_arguments: bool = True
) -> list[Message]:
    """Return copies of the messages in the form that this template supports.

    `text_arguments`: it shows a call's arguments also if they are no object but a text.
    """
    shaped_messages = [_shape(message, capabilities, text_arguments) for message in messages]
    if not keep_developer:
        for message in shaped_messages:
            if message["role"] == "developer":
                message["role"] = "system"
    return shaped_messages if capabilities.supports_system_role else _without_system(shaped_messages)


def _shape(message: Message, capabilities: Capabilities, text_arguments: bool) -> Message:
    copy = dict(message)
    content = copy["content"]
    if isinstance(content, list) and (has_media(content) or not capabilities.supports_typed_content):
        copy["content"] = content = join_parts(
            content, "\n"
        )  # templates know other types for an image, not MEDIA_MARKER
    if isinstance(content, str) and not capabilities.supports_string_content:
        copy["content"] = [{"type": "text", "text": content}]
    if capabilities.supports_object_arguments and "tool_calls" in copy:
        copy["tool_calls"] = [_with_object_arguments(call, text_arguments) for call in copy["tool_calls"]]
    return copy


def _with_object_arguments(call: dict[str, Any], text_arguments: bool) -> dict[str, Any]:
    """Parse the arguments. What is no JSON object, such as a call that was cut off, is shown as it was written."""
    function = call["function"]
    text = function["arguments"]
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = text
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        arguments = text if text_arguments else {"arguments": text}
    return {**call, "function": {**function, "arguments": arguments}}


def _without_system(messages: list[Message]) -> list[Message]:
    """Put a leading system message into the next message, for templates without a system role."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, *rest = messages
    if not rest:
        return []
    text = join_parts(system["content"], "\n") + "\n" + join_parts(rest[0]["content"], "\n")
    typed = isinstance(rest[0]["content"], list)
    return [{**rest[0], "content": [{"type": "text", "text": text}] if typed else text}, *rest[1:]]
