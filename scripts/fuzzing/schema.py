"""The fields that requests may have, found in the sources, and a valid body for each route.

The readers of requests call `Fields` with the fields' names, or decode a body into a Struct. A field that is added
there is fuzzed without a change here.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
READERS = ("worker/api", "worker/chat", "worker/grammar", "worker/media", "router", "common/web", "common/tools")
KINDS = {
    "boolean": "boolean",
    "string": "string",
    "integer": "integer",
    "clamped_integer": "integer",
    "real": "number",
    "limited_real": "number",
    "strings": "strings",
    "object": "object",
}
"""Getters of `Fields`, with the type that each one expects."""
ANY = "any"
TEXT = "Hello"
USER = {"role": "user", "content": TEXT}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
CHAT = {"model": "chat", "messages": [USER], "max_tokens": 4}
COMPLETION = {"model": "chat", "prompt": TEXT, "n_predict": 4}
CALLS = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "1"},
]
ANTHROPIC = {
    "model": "chat",
    "max_tokens": 4,
    "system": TEXT,
    "messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}],
}
RESPONSES = {
    "model": "chat",
    "max_output_tokens": 4,
    "instructions": TEXT,
    "input": [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}],
}
EMBEDDING = {"model": "embed", "input": [TEXT, TEXT]}


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    bodies: tuple[dict[str, Any], ...]
    """Valid bodies, from which random ones are made."""


ROUTES = (
    Route(
        "POST",
        "/completion",
        (COMPLETION, {**COMPLETION, "json_schema": SCHEMA}, {**COMPLETION, "grammar": 'root ::= "a" | "b"'}),
    ),
    Route(
        "POST", "/v1/completions", ({"model": "chat", "prompt": [TEXT], "max_tokens": 4, "stream": True}, COMPLETION)
    ),
    Route(
        "POST",
        "/v1/chat/completions",
        (
            CHAT,
            {**CHAT, "stream": True, "stream_options": {"include_usage": True}},
            {**CHAT, "tools": [TOOL], "tool_choice": "required"},
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
            {**CHAT, "messages": CALLS, "tools": [TOOL]},
        ),
    ),
    Route("POST", "/v1/chat/completions/input_tokens", (CHAT,)),
    Route("POST", "/v1/chat/completions/control", ({"model": "chat", "id": "a", "action": "stop"},)),
    Route(
        "POST",
        "/v1/messages",
        (
            ANTHROPIC,
            {**ANTHROPIC, "stream": True},
            {
                **ANTHROPIC,
                "tools": [{"name": "f", "input_schema": SCHEMA}],
                "tool_choice": {"type": "auto"},
                "thinking": {"type": "enabled", "budget_tokens": 1024},
            },
        ),
    ),
    Route("POST", "/v1/messages/count_tokens", (ANTHROPIC,)),
    Route(
        "POST",
        "/v1/responses",
        (
            RESPONSES,
            {**RESPONSES, "stream": True, "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]},
            {
                **RESPONSES,
                "input": TEXT,
                "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
                "reasoning": {"effort": "low"},
            },
        ),
    ),
    Route("POST", "/v1/responses/input_tokens", (RESPONSES,)),
    Route(
        "POST",
        "/infill",
        (
            {
                "model": "chat",
                "input_prefix": "a",
                "input_suffix": "b",
                "input_extra": [{"filename": "f", "text": "t"}],
                "n_predict": 4,
            },
        ),
    ),
    Route("POST", "/v1/embeddings", (EMBEDDING,)),
    Route("POST", "/embeddings", ({"model": "embed", "content": TEXT},)),
    Route("POST", "/tokenize", ({"model": "chat", "content": TEXT, "add_special": True, "with_pieces": True},)),
    Route("POST", "/detokenize", ({"model": "chat", "tokens": [1, 2, 3]},)),
    Route(
        "POST",
        "/apply-template",
        ({"model": "chat", "messages": CALLS, "tools": [TOOL], "chat_template_kwargs": {"a": 1}},),
    ),
    Route("POST", "/v1/rerank", ({"model": "embed", "query": TEXT, "documents": [TEXT, "a"], "top_n": 1},)),
    Route("POST", "/lora-adapters", ({"model": "chat", "adapters": []},)),
    Route("POST", "/slots/0", ({"model": "chat", "filename": "a"},)),
    Route("POST", "/props", ({"model": "chat"},)),
    Route(
        "POST",
        "/api/chat",
        (
            {"model": "chat", "messages": [USER], "options": {"num_predict": 4}, "stream": False, "format": SCHEMA},
            {"model": "chat", "messages": [USER], "tools": [TOOL], "options": {"num_predict": 4}, "think": True},
        ),
    ),
    Route(
        "POST", "/api/generate", ({"model": "chat", "prompt": TEXT, "options": {"num_predict": 4}, "keep_alive": "5m"},)
    ),
    Route("POST", "/api/embed", ({"model": "embed", "input": [TEXT], "truncate": True},)),
    Route("POST", "/api/embeddings", ({"model": "embed", "prompt": TEXT},)),
    Route("POST", "/api/show", ({"model": "chat", "verbose": True},)),
    Route("POST", "/api/pull", ({"model": "../nothing", "stream": False},)),
    Route("DELETE", "/api/delete", ({"model": "nothing"},)),
    Route("POST", "/models", ({"model": "nothing"},)),
    Route("POST", "/models/load", ({"model": "chat"},)),
    Route("POST", "/models/unload", ({"model": "nothing"},)),
    Route("POST", "/v1/streams/lookup", ({"conversation_ids": ["a", "b"]},)),
    Route("POST", "/tools", ({"tool": "read_file", "params": {"path": "a"}},)),
)
QUERIES = (
    "model",
    "autoload",
    "reload",
    "conv_id",
    "from",
    "action",
    "url",
    "beta",
    "starting_after",
    "limit",
    "after",
)
GETS: tuple[str, ...] = (
    "/health",
    "/models",
    "/v1/models",
    "/props",
    "/metrics",
    "/slots",
    "/lora-adapters",
    "/v1/stream",
    "/api/tags",
    "/api/ps",
)
GETS += (
    "/v1/responses/a",
    "/v1/responses/a/input_items",
    "/models/chat",
    "/v1/models/chat",
    "/tools",
    "/cors-proxy",
    "/",
)


@functools.cache
def fields() -> dict[str, str]:
    """Return the names of all fields in the sources, with the type that their reader expects, or ANY."""
    found: dict[str, str] = {}
    for folder in READERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name, kind in _fields_in(ast.parse(path.read_text())):
                if found.get(name, ANY) == ANY:
                    found[name] = kind
    return dict(sorted(found.items()))


def _fields_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kind = KINDS.get(node.func.attr, ANY if node.func.attr in ("get", "find") else "")
            if kind:
                yield from (
                    (name, kind)
                    for name in _texts(node.args if kind != ANY or node.func.attr == "find" else node.args[:1])
                )
        elif isinstance(node, ast.Subscript):
            yield from ((name, ANY) for name in _texts([node.slice]))
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            yield from ((name, ANY) for name in _texts([node.left]))
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) in ("msgspec.Raw", "Any"):
            yield ast.unparse(node.target), ANY  # a field of a Struct into which a body is decoded


def _texts(nodes: Iterable[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.replace("_", "").isalnum():
            yield node.value
