"""Converts Anthropic's tools to chat tools. Pure, except for debug lines.

Tools that Anthropic defines and the client runs get the schema that Anthropic's models are trained on. Tools that run
on Anthropic's servers are left out, since they cannot be called here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields, wrong_type

log = logging.getLogger("corral.worker")

JSON = dict[str, Any]

_SERVER_TOOLS = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "advisor_", "mcp_toolset")
"""The beginnings of the types of tools that run on Anthropic's servers."""


def read_tools(value: object) -> JSON:
    if value is None:
        return {}
    if not isinstance(value, list):
        raise wrong_type("tools", "array", value)
    tools = [_read_tool(item, f"tools[{i}]") for i, item in enumerate(value) if not _runs_elsewhere(item)]
    if len(tools) < len(value):
        log.debug("leaving out %d tools of a request: they run on Anthropic's servers", len(value) - len(tools))
    return {"tools": tools} if tools else {}


def _runs_elsewhere(item: object) -> bool:
    kind = item.get("type") if isinstance(item, dict) and not item.get("input_schema") else None
    return isinstance(kind, str) and kind.startswith(_SERVER_TOOLS)


def _read_tool(item: object, where: str) -> JSON:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where}: must be an object")
    fields = Fields(item)
    name, kind = fields.string("name", default=""), fields.string("type", default="custom")
    description, schema = fields.string("description", default=""), fields.object("input_schema")
    if not schema and kind != "custom":
        known = next((tool for prefix, tool in _CLIENT_TOOLS.items() if kind.startswith(prefix) and name), None)
        if known is None:
            raise InvalidRequest(f"{where}: '{kind}' is not known to this server and has no 'input_schema'")
        description, schema = known
    if not name:
        raise InvalidRequest(f"{where}: must have a 'name'")
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def read_choice(value: object) -> JSON:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_type("tool_choice", "object", value)
    fields = Fields(value)
    chat: JSON = {}
    if fields.boolean("disable_parallel_tool_use", default=False):
        chat["parallel_tool_calls"] = False
    match fields.string("type", default=""):
        case "any":
            chat["tool_choice"] = "required"
        case "tool":
            if not (name := fields.string("name", default="")):
                raise InvalidRequest("Field 'tool_choice.name': must name a tool")
            chat["tool_choice"] = {"type": "function", "function": {"name": name}}
        case "auto" | "none" as same:
            chat["tool_choice"] = same
        case other:
            raise InvalidRequest(f"Field 'tool_choice.type': must be auto, any, tool or none, but is {other!r}")
    return chat


def _schema(required: tuple[str, ...], properties: Mapping[str, JSON]) -> JSON:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


_STRING: JSON = {"type": "string"}
_INTEGER: JSON = {"type": "integer"}
_POINT: JSON = {"type": "array", "items": _INTEGER, "minItems": 2, "maxItems": 2}

_CLIENT_TOOLS: Mapping[str, tuple[str, JSON]] = {
    "bash_": (
        "Runs a command in a shell that is kept from call to call. `restart` opens a new one.",
        _schema((), {"command": _STRING, "restart": {"type": "boolean"}}),
    ),
    "text_editor_": (
        "Views and edits text files. view: a file (lines of view_range) or a directory; create: a file with file_text; "
        "str_replace: the one place where old_str occurs; insert: insert_text after line insert_line.",
        _schema(
            ("command", "path"),
            {
                "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
                "path": _STRING,
                "view_range": _POINT,
                "file_text": _STRING,
                "old_str": _STRING,
                "new_str": _STRING,
                "insert_line": _INTEGER,
                "insert_text": _STRING,
            },
        ),
    ),
    "memory_": (
        "Keeps notes as files below /memories, which outlive the conversation.",
        _schema(
            ("command",),
            {
                "command": {
                    "type": "string",
                    "enum": ["view", "create", "str_replace", "insert", "delete", "rename"],
                },
                "path": _STRING,
                "view_range": _POINT,
                "file_text": _STRING,
                "old_str": _STRING,
                "new_str": _STRING,
                "insert_line": _INTEGER,
                "insert_text": _STRING,
                "old_path": _STRING,
                "new_path": _STRING,
            },
        ),
    ),
    "computer_": (
        "Uses a screen, a mouse and a keyboard: takes screenshots, moves, clicks, drags, scrolls, types, presses keys.",
        _schema(
            ("action",),
            {
                "action": _STRING,
                "coordinate": _POINT,
                "start_coordinate": _POINT,
                "text": _STRING,
                "scroll_direction": {"type": "string", "enum": ["up", "down", "left", "right"]},
                "scroll_amount": _INTEGER,
                "duration": {"type": "number"},
            },
        ),
    ),
}
"""Description and arguments of each tool, by the prefix of its type; the rest of the type is a date."""
