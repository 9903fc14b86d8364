"""Converts an Anthropic request to the body of the equivalent chat request. Pure, except for debug lines.

Like llama-server it accepts requests that Anthropic would refuse (no `max_tokens`, any order of roles) and ignores
unknown fields. But it never silently drops a part of the conversation: for a block that it cannot read it raises
InvalidRequest, which names the block.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields, wrong_type

from .content import add_turn, read_messages, read_system
from .tools import read_choice, read_tools

log = logging.getLogger("corral.worker")

DEFAULT_MAX_TOKENS = 4096
"""llama-server's default for the field, which Anthropic requires."""

DEFAULT_BUDGET = 10000
"""llama-server's default for the thinking budget, which Anthropic requires."""

PASSED_ON = (
    *("temperature", "top_p", "top_k", "stream"),
    *("min_p", "seed", "cache_prompt", "id_slot", "lora", "reasoning_format", "sse_ping_interval"),
)
"""Fields that are copied: Anthropic's fields with the same meaning in chats, and this server's own fields."""

_BILLING = re.compile(r"\A(x-anthropic-billing-header:[^\n]*?cch=)[^;\s]*;")
"""Claude Code writes a changing value in the system prompt's first line; it would invalidate the cache after it."""


def chat_body(body: Mapping[str, Any], *, prefills: bool, thinks: bool = True) -> dict[str, Any]:
    """Return the chat request.

    `prefills`: True if the answer continues an assistant message at the end. `thinks`: True if the server's default for
    thinking applies to a request without `thinking`; otherwise the model does not think then, as with Anthropic.
    """
    fields = Fields(body)
    if body.get("messages") is None:
        raise InvalidRequest("'messages' is required")
    messages = read_messages(body["messages"])
    if system := read_system(body.get("system"), _without_stamp):
        beginning = [{"role": "system", "content": system}]
        if messages and messages[0]["role"] == "system":
            add_turn(beginning, messages.pop(0))
        messages[:0] = beginning
    chat: dict[str, Any] = {"messages": messages}
    if prefills and messages and messages[-1]["role"] == "assistant":
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    chat["max_tokens"] = fields.integer("max_tokens", default=DEFAULT_MAX_TOKENS, low=-1)
    chat |= {name: body[name] for name in PASSED_ON if body.get(name) is not None}
    if stop := fields.strings("stop_sequences", default=()):
        chat["stop"] = list(stop)
    if _mcp_servers(body.get("mcp_servers")):
        log.debug("ignoring the MCP servers of a request: this server does not call them for its clients")
    chat |= read_tools(fields.find("tools")[1])
    chat |= read_choice(fields.find("tool_choice")[1])
    chat |= _thinking(fields, thinks)
    chat |= _output(Fields(fields.object("output_config")), fields)
    return chat


def _mcp_servers(value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_type("mcp_servers", "array of objects", value)
    for server in value:
        if not isinstance(server, dict):
            raise wrong_type("mcp_servers", "array of objects", server)
    return value


def _without_stamp(text: str) -> str:
    return _BILLING.sub(r"\g<1>fffff;", text)


def _thinking(fields: Fields, thinks: bool) -> dict[str, Any]:
    variables, thinking = fields.object("chat_template_kwargs"), Fields(fields.object("thinking"))
    kind = thinking.string("type", default="")
    if kind or not thinks:
        variables = {"enable_thinking": kind not in ("", "disabled"), **variables}
    chat: dict[str, Any] = {"chat_template_kwargs": variables} if variables else {}
    if kind == "enabled":
        chat["thinking_budget_tokens"] = thinking.integer("budget_tokens", default=DEFAULT_BUDGET, low=0)
    return chat


def _output(output: Fields, fields: Fields) -> dict[str, Any]:
    """Read the reasoning effort and the output format, which was the separate field `output_format` before."""
    chat: dict[str, Any] = {}
    if effort := output.string("effort", default=""):
        chat["reasoning_effort"] = effort
    form = output.object("format") or fields.object("output_format")
    if form:
        if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
            raise wrong_type("output_config.format", "json_schema with a schema", form)
        chat["response_format"] = {"type": "json_schema", "json_schema": {"schema": form["schema"]}}
    return chat
