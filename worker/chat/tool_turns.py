"""Adapt conversations with tools to templates with restrictions: only one call per message, no user message directly
after a tool result, tool results inside the message of their calls, ids of nine characters. Pure.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .content import join_parts
from .messages import Message


def one_call_at_a_time(messages: Sequence[Message]) -> list[Message]:
    """Split parallel calls into separate assistant messages, each followed by its result."""
    turns: list[Message] = []
    rest = deque(messages)
    while rest:
        message = rest.popleft()
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            turns.append(message)
            continue
        results = []
        while rest and rest[0]["role"] == "tool":
            results.append(rest.popleft())
        for i, call in enumerate(calls):
            turns.append({**(message if i == 0 else {"role": "assistant", "content": ""}), "tool_calls": [call]})
            own = [result for result in results if result.get("tool_call_id") == call.get("id")][:1]
            turns += own or results[:1]
            results = [result for result in results if result is not turns[-1]]
        turns += results
    return turns


def users_in_results(messages: Sequence[Message]) -> list[Message]:
    """Append a user message that directly follows a tool result to that result. Coding agents put reminders there."""
    turns: list[Message] = []
    for message in messages:
        last = turns[-1] if turns else None
        if last is None or message["role"] != "user" or last["role"] != "tool":
            turns.append(message)
            continue
        one, two = last["content"], message["content"]
        if isinstance(one, str) and isinstance(two, str):
            turns[-1] = {**last, "content": f"{one}\n\n{two}"}
        else:
            turns[-1] = {**last, "content": [*_parts(one), *_parts(two)]}
    return turns


def _parts(content: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def with_tool_responses(
    messages: Sequence[Message], quoted: Callable[[Any], Any] = lambda value: value
) -> list[Message]:
    """Move tool results into `tool_responses` of the message with the calls, as early Gemma 4 templates require.

    `quoted` changes each result that was read as JSON: its escapes may have hidden the spelling of a special token.
    """
    turns: list[Message] = []
    for message in messages:
        last = turns[-1] if turns else {}
        if message["role"] == "tool" and last.get("tool_calls") and not last.get("answered"):
            responses = last.setdefault("tool_responses", [])
            response = _response(message, last["tool_calls"], len(responses))
            responses.append({**response, "response": quoted(response["response"])})
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


_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


def with_short_call_ids(messages: Sequence[Message]) -> list[Message]:
    """Give each call an id of nine letters and digits, and its result the same: some templates refuse all others.

    The same id always gives the same short one, so that a prompt stays the beginning of the next one. A call without an
    id gets one from its place, and a result without one belongs to the first such call.
    """
    turns: list[Message] = []
    unnamed: deque[str] = deque()
    for at, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            named = []
            for i, call in enumerate(calls):
                if not call.get("id"):
                    unnamed.append(f"call {at} {i}")
                named.append({**call, "id": _short_id(call.get("id") or unnamed[-1])})
            message = {**message, "tool_calls": named}
        elif message["role"] == "tool":
            id = message.get("tool_call_id") or (unnamed.popleft() if unnamed else f"result {at}")
            message = {**message, "tool_call_id": _short_id(id)}
        turns.append(message)
    return turns


def _short_id(id: str) -> str:
    return id if _SHORT_ID.fullmatch(id) else hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]
