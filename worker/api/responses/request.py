"""Validates a request for a Response and converts it to the equivalent chat request. Pure, except for debug lines.

llama-server's additional fields of chat requests (`top_k`, `cache_prompt`, `chat_template_kwargs` …) are copied.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields, json_type
from msgspec import Struct

from .items import Item, messages_of, read_input

log = logging.getLogger("corral.worker")

_OWN_FIELDS = frozenset(
    {
        *("input", "instructions", "previous_response_id", "store", "metadata", "truncation", "include", "background"),
        *("max_output_tokens", "reasoning", "text", "tools", "tool_choice", "top_logprobs", "conversation", "prompt"),
        *("messages", "n", "n_cmpl", "continue_final_message", "add_generation_prompt"),
    }
)
"""Fields that are converted here or have no meaning; all others are copied to the chat request."""
_ELSEWHERE = {
    "background": "responses are not generated in the background",
    "conversation": "conversations are not stored, use 'previous_response_id'",
    "prompt": "there are no prompt templates, use 'instructions' and 'input'",
}
_REPEATED = ("user", "prompt_cache_key", "safety_identifier", "max_tool_calls")
"""Fields without effect that the Response repeats."""
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"


class ResponseForm(Struct, frozen=True):
    """The form of the Response. It exists until the end of the answer, so it contains nothing large."""

    shown: Mapping[str, Any]  # the fields of the request that the Response repeats
    n_top_logprobs: int | None = None  # None: no probabilities
    carries_thoughts: bool = False
    summarizes: bool = False


class ResponsesRequest(Struct, frozen=True):
    items: list[Item]  # of `input`
    instructions: str | None
    previous: str  # the id of the previous response, or empty
    stores: bool
    truncates: bool
    form: ResponseForm
    chat: Mapping[str, Any]  # the chat request without its messages

    def chat_body(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return the chat request. `items`: those of the previous responses and of this request."""
        return {**self.chat, "messages": messages_of(items, self.instructions)}


def read_responses(body: Mapping[str, Any]) -> ResponsesRequest:
    fields = Fields(body)
    _refuse_elsewhere(fields)
    include = fields.strings("include", default=())
    top = fields.integer("top_logprobs", default=0, low=0, high=20)
    n_top = top if top or LOGPROBS in include else None
    truncation = _one_of(fields.string("truncation", default="disabled"), "truncation", ("auto", "disabled"))
    tools = _read_tools(fields)
    chat = {name: value for name, value in body.items() if name not in _OWN_FIELDS}
    chat |= _chat_tools(tools, body.get("tool_choice"))
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = fields.integer("max_output_tokens", default=-1, low=-1)
    reasoning = Fields(fields.object("reasoning"))
    if effort := reasoning.string("effort", default=""):
        chat["reasoning_effort"] = effort
    summary = reasoning.string("summary", "generate_summary", default="")
    text = fields.object("text")
    if (form := _response_format(Fields(text))) is not None:
        chat["response_format"] = form
    if n_top is not None:
        chat |= {"logprobs": True, "top_logprobs": max(1, n_top)}
    instructions = fields.string("instructions", default="") if body.get("instructions") is not None else None
    previous = fields.string("previous_response_id", default="")
    shown = {
        "instructions": instructions,
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": _metadata(fields),
        "parallel_tool_calls": fields.boolean("parallel_tool_calls", default=True),
        "previous_response_id": previous or None,
        "reasoning": {"effort": effort or None, "summary": summary or None},
        "store": fields.boolean("store", default=True),
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": tools,
        "top_logprobs": top,
        "truncation": truncation,
        **{name: body[name] for name in _REPEATED if body.get(name) is not None},
    }
    return ResponsesRequest(
        items=read_input(body.get("input")),
        instructions=instructions,
        previous=previous,
        stores=bool(shown["store"]),
        truncates=truncation == "auto",
        form=ResponseForm(shown, n_top, carries_thoughts=ENCRYPTED in include, summarizes=bool(summary)),
        chat=chat,
    )


def _refuse_elsewhere(fields: Fields) -> None:
    for name, why in _ELSEWHERE.items():
        if fields.body.get(name) not in (None, False):
            raise InvalidRequest(f"Field '{name}' is not supported: {why}")
    for name in ("n", "n_cmpl"):
        if fields.integer(name, default=1) != 1:
            raise InvalidRequest(f"Field '{name}': must be 1, a response has one answer")


def _one_of(value: str, name: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise InvalidRequest(f"Field '{name}': must be one of {', '.join(allowed)}, but is {value!r}")
    return value


def _metadata(fields: Fields) -> dict[str, str]:
    metadata = fields.object("metadata")
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise InvalidRequest(f"Field 'metadata.{name}': type must be string, but is {json_type(value)}")
    return metadata


def _response_format(text: Fields) -> dict[str, Any] | None:
    form = text.object("format")
    kind = Fields(form).string("type", default="text")
    if kind == "json_schema":
        if not isinstance(form.get("schema"), dict):
            raise InvalidRequest("Field 'text.format.schema': a json_schema format needs a schema")
        schema = {name: form[name] for name in ("name", "schema", "strict") if name in form}
        return {"type": "json_schema", "json_schema": schema}
    _one_of(kind, "text.format.type", ("text", "json_object"))
    return {"type": "json_object"} if kind == "json_object" else None


# -- tools -----------------------------------------------------------------------------------------------------------


def _read_tools(fields: Fields) -> list[dict[str, Any]]:
    """Return all tools; functions in the chat format are converted to the Responses format."""
    _, given = fields.find("tools")
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise InvalidRequest("'tools' must be an array of objects")
    return [_flat(tool) for tool in given]


def _flat(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    return {"type": "function", **function} if isinstance(function, dict) and "name" not in tool else tool


def _chat_tools(tools: Sequence[Mapping[str, Any]], choice: object) -> dict[str, Any]:
    """Return the chat fields for tools. Tools that run on OpenAI's servers are removed, as in llama-server."""
    functions = [tool for tool in tools if tool.get("type") == "function"]
    if len(functions) < len(tools):
        log.debug("ignoring %d tools of a request: only functions can be called", len(tools) - len(functions))
    if isinstance(choice, dict):
        functions, choice = _limited(functions, choice)
    if choice == "required" and not functions:
        raise InvalidRequest("Field 'tool_choice': must not be required, as the request has no functions")
    chat: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
    if functions:
        chat["tools"] = [{"type": "function", "function": _without_type(tool)} for tool in functions]
    return chat


def _without_type(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tool.items() if name != "type"}


def _limited(functions: list[Mapping[str, Any]], choice: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], object]:
    """Apply `tool_choice` of type `function` or `allowed_tools`: return the allowed functions and the chat's choice."""
    kind = choice.get("type")
    if kind == "function":
        named = choice if "function" in choice else {"type": "function", "function": {"name": choice.get("name")}}
        return functions, named
    if kind == "allowed_tools":
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not all(isinstance(tool, dict) for tool in allowed):
            raise InvalidRequest("Field 'tool_choice.tools': must be a list of objects")
        names = [tool.get("name") for tool in allowed if tool.get("type", "function") == "function"]
        offered = [tool.get("name") for tool in functions]
        if (unknown := next((name for name in names if name not in offered), "")) != "":
            raise InvalidRequest(f"Field 'tool_choice.tools': there is no function named {unknown}")
        mode = _one_of(str(choice.get("mode", "auto")), "tool_choice.mode", ("auto", "required"))
        return [tool for tool in functions if tool.get("name") in names], mode
    raise InvalidRequest(f"Field 'tool_choice': only functions can be called, not {kind!r}")
