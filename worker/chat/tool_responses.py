"""Results of tools as earlier Gemma 4 templates take them: within the message of their calls. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .content import join_parts
from .messages import Message


def with_tool_responses(messages: Sequence[Message]) -> list[Message]:
    turns: list[Message] = []
    for message in messages:
        last = turns[-1] if turns else {}
        if message["role"] == "tool" and last.get("tool_calls") and not last.get("answered"):
            responses = last.setdefault("tool_responses", [])
            responses.append(_response(message, last["tool_calls"], len(responses)))
        elif message["role"] == "assistant" and "tool_responses" in last and not message.get("tool_calls"):
            said = [join_parts(part["content"], "\n") for part in (last, message)]
            last |= {"content": "\n".join(filter(None, said)), "answered": True}
        else:
            turns.append(dict(message))
    return [{key: value for key, value in turn.items() if key != "answered"} for turn in turns]


def _response(message: Message, calls: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
    by_id = next((call for call in calls if call.get("id") and call["id"] == message.get("tool_call_id")), None)
    call = by_id or (calls[index] if index < len(calls) else None)
    name = call["function"]["name"] if call else message.get("name") or message.get("tool_call_id", "")
    text = join_parts(message["content"], "\n")
    try:
        return {"name": name, "response": json.loads(text)}
    except ValueError:
        return {"name": name, "response": text}
