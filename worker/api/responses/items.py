"""Parses the input items of OpenAI's Responses API and converts them to chat messages. Pure.

Consecutive items of one turn (reasoning, text, calls) become one assistant message, as the model wrote it. Error
messages are those of llama-server where it refuses the same input.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import json_type, wrong_type

from ..foreign_items import shown_call, shown_output, shown_result
from ..request.limits import MAX_MESSAGES, check_number

Item = dict[str, Any]
Message = dict[str, Any]

CALL_PREFIX = "call_"
"""Added to call ids in answers and removed from requests: the template needs the id that the model wrote."""
_CARRIED = "plain:"
"""Start of our `encrypted_content`, in which clients that do not keep `content` send the reasoning back."""
ITEM_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_INPUT_ROLES = ("user", "system", "developer")


def read_input(value: object) -> list[Item]:
    """Return the items, each with a known `type`; a text becomes a user message. Raises InvalidRequest."""
    if isinstance(value, str):
        return read_input([{"role": "user", "content": value}])
    if value is None:
        raise InvalidRequest("'input' is required")
    if not isinstance(value, list):
        raise InvalidRequest("'input' must be a string or array of objects")
    check_number("input", len(value), MAX_MESSAGES)
    return [_read_item(item, f"input[{at}]") for at, item in enumerate(value)]


def _read_item(item: object, where: str) -> Item:
    if not isinstance(item, dict):
        raise InvalidRequest(f"Field '{where}': an item must be an object, but is {json_type(item)}")
    kind = item.get("type", "message" if "role" in item else None)
    if kind != "item_reference":
        if not isinstance(kind, str) or kind not in _TO_MESSAGES:
            shown = f": {kind!r} is not supported" if isinstance(kind, str) else ""
            raise InvalidRequest(f"Cannot determine type of 'item': Field '{where}'{shown}")
        _TO_MESSAGES[kind](item, where, [])  # validates it now: later it may be a stored item of another request
    elif not isinstance(item.get("id"), str):
        raise InvalidRequest(f"Field '{where}.id': an item_reference must have the id of an item")
    return {**item, "type": kind, **_with_content_parts(item)}


def _with_content_parts(item: Item) -> Item:
    """Return the content as a list with one part if it is a text, else nothing."""
    content = item.get("content")
    if not isinstance(content, str):
        return {}
    if item.get("role") == "assistant":
        return {"content": [{"type": "output_text", "text": content, "annotations": []}]}
    return {"content": [{"type": "input_text", "text": content}]}


def messages_of(items: Sequence[Item], instructions: str | None) -> list[Message]:
    messages: list[Message] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for at, item in enumerate(items):
        _TO_MESSAGES[item["type"]](item, f"input[{at}]", messages)
    return messages


# -- messages --------------------------------------------------------------------------------------------------------


def _message(item: Item, where: str, messages: list[Message]) -> None:
    role, content = item.get("role"), item.get("content")
    if role != "assistant" and role not in _INPUT_ROLES:
        raise InvalidRequest(f"Field '{where}.role': must be one of user, system, developer, assistant")
    if not isinstance(content, str | list):
        raise wrong_type(f"{where}.content", "string or array", content)
    if role != "assistant":
        _add(messages, {"role": role, "content": _parts(content, f"{where}.content", _input_part)})
        return
    turn = _turn(messages)
    parts = _parts(content, f"{where}.content", _output_part)
    turn["content"] = [*_as_parts(turn["content"]), *_as_parts(parts)] if turn["content"] else parts


class _ShownResult(dict[str, Any]):
    """A user message with the result of a call that another server made."""


def _add(messages: list[Message], message: Message) -> None:
    """Append a message; one of the user becomes part of a result before it, as most templates require turns."""
    last = messages[-1] if messages else None
    if isinstance(last, _ShownResult) and message["role"] == "user":
        last["content"] = [*_as_parts(last["content"]), *_as_parts(message["content"])]
    else:
        messages.append(message)


def _turn(messages: list[Message]) -> Message:
    """Return the assistant message at the end; append one if there is none."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _as_parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _parts(content: str | list[Any], where: str, read: Callable[[str, Mapping[str, Any], str], Any]) -> str | list[Any]:
    if isinstance(content, str):
        return content
    parts = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise InvalidRequest(f"Field '{where}[{at}]': a part must be an object with a 'type'")
        parts.append(read(kind, part, f"{where}[{at}]"))
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _input_part(kind: str, part: Mapping[str, Any], where: str) -> dict[str, Any]:
    if kind == "input_text":
        return _text(part, "text", where)
    if kind == "input_image":
        url = part.get("image_url")
        if not isinstance(url, str):
            raise InvalidRequest(f"'image_url' is required: Field '{where}': uploaded files are not supported")
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    if kind == "input_file":
        raise InvalidRequest(f"'input_file' is not supported: Field '{where}'")
    raise InvalidRequest(f"Field '{where}': 'type' must be one of 'input_text', 'input_image', or 'input_file'")


def _output_part(kind: str, part: Mapping[str, Any], where: str) -> dict[str, Any]:
    if kind in ("output_text", "input_text"):
        return _text(part, "text", where)
    if kind == "refusal":
        return _text(part, "refusal", where)
    raise InvalidRequest(f"Field '{where}': 'type' must be one of 'output_text' or 'refusal'")


def _text(part: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    return {"type": "text", "text": _string(part, name, where)}


def _string(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise wrong_type(f"{where}.{name}", "string", value)
    return value


# -- calls and reasoning ---------------------------------------------------------------------------------------------


def _call(item: Item, where: str, messages: list[Message]) -> None:
    function = {name: _string(item, name, where) for name in ("name", "arguments")}
    call = {"type": "function", "id": _call_id(item, where), "function": function}
    _turn(messages).setdefault("tool_calls", []).append(call)


def _call_output(item: Item, where: str, messages: list[Message]) -> None:
    output = item.get("output")
    if not isinstance(output, str | list):
        raise wrong_type(f"{where}.output", "string or array", output)
    content = _parts(output, f"{where}.output", _input_part)
    messages.append({"role": "tool", "tool_call_id": _call_id(item, where), "content": content})


def _call_id(item: Item, where: str) -> str:
    return _string(item, "call_id", where).removeprefix(CALL_PREFIX)


def _reasoning(item: Item, where: str, messages: list[Message]) -> None:
    """Add reasoning to the turn. An item that has only another server's `encrypted_content` is ignored."""
    thought = (
        _texts(item.get("content")) or _unpack_reasoning(item.get("encrypted_content")) or _texts(item.get("summary"))
    )
    if thought:
        turn = _turn(messages)
        before = turn.get("reasoning_content")
        turn["reasoning_content"] = f"{before}\n{thought}" if before else thought


def _foreign(item: Item, where: str, messages: list[Message]) -> None:
    """Show a call that this server cannot make, its result or the user's approval as text."""
    is_output = item["type"].endswith(_OUTPUT)
    if not is_output:
        turn, said = _turn(messages), shown_call(item)
        turn["content"] = [*_as_parts(turn["content"]), *_as_parts(said)] if turn["content"] else said
    if result := shown_output(item) if is_output else shown_result(item):
        _add(messages, _ShownResult(role="user", content=result))


def _ignored(item: Item, where: str, messages: list[Message]) -> None:
    """Leave out an item that a model cannot read, such as a compaction, whose text only OpenAI can decrypt."""


def _texts(parts: object) -> str:
    found: Iterable[Any] = parts if isinstance(parts, list) else ()
    texts = [part["text"] for part in found if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(texts)


def pack_reasoning(thought: str) -> str:
    return base64.b64encode((_CARRIED + thought).encode()).decode()


def _unpack_reasoning(content: object) -> str:
    try:
        text = base64.b64decode(content, validate=True).decode() if isinstance(content, str) else ""
    except (binascii.Error, ValueError):
        return ""
    return text.removeprefix(_CARRIED) if text.startswith(_CARRIED) else ""


_OUTPUT = ("_output", "_response")
_FOREIGN = (
    *("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "tool_search_call"),
    *("computer_call", "local_shell_call", "shell_call", "apply_patch_call", "custom_tool_call", "mcp_call"),
    *(f"{kind}_call_output" for kind in ("computer", "local_shell", "shell", "apply_patch", "custom_tool")),
    *("tool_search_output", "mcp_approval_request", "mcp_approval_response"),
)
_UNREADABLE = ("compaction", "compaction_trigger", "mcp_list_tools", "additional_tools")

_TO_MESSAGES: dict[str, Callable[[Item, str, list[Message]], None]] = {
    **dict.fromkeys(_FOREIGN, _foreign),
    **dict.fromkeys(_UNREADABLE, _ignored),
    "message": _message,
    "function_call": _call,
    "function_call_output": _call_output,
    "reasoning": _reasoning,
}
