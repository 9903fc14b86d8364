"""Requests as Anthropic's clients make them."""

from __future__ import annotations

from typing import Any

CACHED = {"cache_control": {"type": "ephemeral"}}
USER = {"role": "user", "content": "What is in the harbour?"}

LOOK = {
    "name": "look",
    "description": "Looks at a place",
    "input_schema": {
        "type": "object",
        "properties": {"far": {"type": "boolean"}, "eyes": {"enum": [1, 2]}},
        "required": ["far", "eyes"],
        "additionalProperties": False,
        "$schema": "http://json-schema.org/draft-07/schema#",
    },
}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def _large_tool(i: int) -> dict[str, Any]:
    """Return a tool with a schema as coding agents use: nested arrays, enumerations, defaults, unions, numbers."""
    item = {
        "type": "object",
        "properties": {
            "content": {"type": "string", "minLength": 1},
            "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
            "id": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "required": ["content", "status"],
        "additionalProperties": False,
    }
    properties = {
        "file_path": {"type": "string", "description": "The absolute path. " + "It must exist. " * 3},
        "offset": {"type": "number", "minimum": 0},
        "limit": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        "replace_all": {"type": "boolean", "default": False},
        "todos": {"type": "array", "items": item},
        "url": {"type": "string", "format": "uri"},
        "metadata": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}},
    }
    return {
        "name": f"Tool{i}",
        "description": "Does one thing.\n\nUsage:\n" + "- Read this first.\n" * 3,
        "input_schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": properties,
            "required": ["file_path"],
            "additionalProperties": False,
        },
    }


def coding_agent(**more: Any) -> dict[str, Any]:
    """Return a request that a coding agent sends in the middle of its work."""
    messages = [
        {
            "role": "user",
            "content": [
                text("<system-reminder>\nBe brief.\n</system-reminder>"),
                text("Fix the bug in main.py", **CACHED),
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I should read it.", "signature": "EqQBCgIYAhIM"},
                {"type": "redacted_thinking", "data": "EmwKAhgB"},
                text("I read both files."),
                {"type": "tool_use", "id": "toolu_01", "name": "Tool0", "input": {"file_path": "/main.py"}},
                {"type": "tool_use", "id": "toolu_02", "name": "Tool1", "input": {"file_path": "/b.py"}, **CACHED},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_01", "content": [text("print('hi')")]},
                {"type": "tool_result", "tool_use_id": "toolu_02", "content": "No such file", "is_error": True},
                text("<system-reminder>One file is not there.</system-reminder>", **CACHED),
            ],
        },
        {"role": "system", "content": "Another agent is ready."},
    ]
    return {
        "model": "claude-opus-4-1",
        "system": [
            text("x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=a5145;"),
            text("You are a coding agent.", cache_control={"type": "ephemeral", "ttl": "1h"}),
            text("# Tone\n" + "Say what you do.\n" * 20, **CACHED),
        ],
        "messages": messages,
        "tools": [*(_large_tool(i) for i in range(19)), {**_large_tool(19), **CACHED, "type": "custom"}],
        "metadata": {"user_id": '{"device_id":"d","session_id":"s"}'},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "service_tier": "auto",
        "temperature": 1,
        "stream": True,
        **more,
    }
