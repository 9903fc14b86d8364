"""Shows the parts of a conversation as text that another server made with its own tools: searches, code, MCP calls.

A conversation that was begun elsewhere contains them. This server cannot make such calls, but the model should know
what was said. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_HIDDEN = frozenset(
    {
        *("type", "id", "status", "cache_control", "caller", "signature", "file_id", "container_id", "created_by"),
        *("call_id", "tool_use_id", "approval_request_id", "encrypted_content", "encrypted_index", "encrypted_stdout"),
    }
)
"""Fields without a meaning for a model."""
_RESULTS = frozenset({"output", "outputs", "result", "results", "error", "content"})
"""Fields of a call that contain what the tool returned."""


def shown_call(item: Mapping[str, Any]) -> str:
    """Return what the model wrote to make a call."""
    return _shown(item, {key: value for key, value in item.items() if key not in _RESULTS})


def shown_result(item: Mapping[str, Any]) -> str:
    """Return what the tool returned, or "" if the item does not contain it."""
    found = {key: value for key, value in item.items() if key in _RESULTS}
    return _shown(item, found) if _readable(found) is not None else ""


def shown_output(item: Mapping[str, Any]) -> str:
    """Return what an item that is not a call says: its result, or else all its fields; "" if nothing is readable."""
    if result := shown_result(item):
        return result
    others = {key: value for key, value in item.items() if key not in _RESULTS}
    if _readable(others) is not None:
        return _shown(item, others)
    return f"[{item['type']}] failed" if item.get("status") == "failed" else ""


def _shown(item: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    name = item.get("name") or item.get("tool_name")
    head = f"{item['type']} {name}" if isinstance(name, str) and name else str(item["type"])
    rest = _readable({key: value for key, value in fields.items() if key not in ("name", "tool_name")})
    values = list(rest.values()) if isinstance(rest, dict) else []
    if not values:
        return f"[{head}]"
    text = values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(rest, ensure_ascii=False)
    return f"[{head}] {text}"


def _readable(value: Any) -> Any:
    """Return the value without what a model cannot read: ids, encrypted text, files; None if nothing is left."""
    if isinstance(value, Mapping):
        if value.get("type") == "base64":
            return None
        fields = {key: _readable(item) for key, item in value.items() if key not in _HIDDEN}
        return {key: item for key, item in fields.items() if item not in (None, "", [], {})} or None
    if isinstance(value, list):
        return [item for item in map(_readable, value) if item is not None] or None
    if isinstance(value, str) and (value.startswith("data:") or not value):
        return None
    return value
