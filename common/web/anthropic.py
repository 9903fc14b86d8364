"""The parts of Anthropic's dialect that router and worker share: detection, errors, list of models. Pure functions.

Only the worker handles the messages themselves.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from ..base.errors import ApiError, ContextExceeded, MediaNotSupported, ModelNotFound, Unavailable

MESSAGES_PATHS = ("/v1/messages", "/v1/messages/count_tokens")
VERSION_HEADER = "anthropic-version"
"""Every Anthropic client sends this header, on every path."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
"""Error types by status; all other statuses are an `api_error`."""


def speaks_anthropic(request: web.Request) -> bool:
    return request.path.endswith(MESSAGES_PATHS) or VERSION_HEADER in request.headers


def anthropic_status(error: ApiError) -> int:
    if isinstance(error, ModelNotFound):
        return 404
    if isinstance(error, MediaNotSupported):  # clients of llama-server know this status; they are told not to retry
        return 500
    return 529 if isinstance(error, Unavailable) else error.status


def anthropic_error(error: ApiError) -> dict[str, Any]:
    message = error.message
    if isinstance(error, ContextExceeded):  # agents recognise this text and shorten the conversation
        message = f"prompt is too long: {error.n_prompt_tokens} tokens > {error.n_ctx} maximum"
    return {
        "type": "error",
        "error": {"type": _TYPES.get(anthropic_status(error), "api_error"), "message": message},
        "request_id": f"req_{secrets.token_hex(12)}",
    }


def with_anthropic_names(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return OpenAI's list of models with Anthropic's additional fields, as a single page."""
    return {
        "data": [with_anthropic_name(entry) for entry in entries],
        "has_more": False,
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
    }


def with_anthropic_name(entry: dict[str, Any]) -> dict[str, Any]:
    created = datetime.fromtimestamp(entry["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**entry, "type": "model", "display_name": entry["id"], "created_at": created}
