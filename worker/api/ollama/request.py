"""Converts Ollama's requests to chat bodies and completion fields. Pure; used by `handlers`.

Options that Ollama applies when it loads a model (`num_ctx`, `num_gpu` …) are accepted without effect: here the preset
sets them, because no request may reload a model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llama_corral.common.base.errors import InvalidRequest, NotSupported
from llama_corral.common.web.json_fields import Fields, json_type, wrong_type
from msgspec import Struct

log = logging.getLogger("corral.worker")

MAX_TOP_LOGPROBS = 20
CALL_ID = "call{:05d}"
"""Ollama's calls have no ids, but some templates require ids of exactly nine letters and digits."""

_SAME = frozenset(
    {
        *("seed", "temperature", "top_k", "top_p", "min_p", "typical_p", "stop"),
        *("repeat_penalty", "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta"),
        *("top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent"),
        *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    }
)
"""Options with the same name as our field. Ollama does not know those of the last two lines."""
_WHEN_LOADING = frozenset(
    {
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "f16_kv", "logits_all"),
        *("vocab_only", "use_mmap", "use_mlock", "embedding_only", "num_gqa", "tfs_z", "penalize_newline"),
    }
)
"""Options that apply when a model is loaded. The last two have no effect in Ollama either."""
_IMAGE_TYPES = {"/9j/": "jpeg", "iVBOR": "png", "R0lGOD": "gif", "UklGR": "webp", "Qk": "bmp"}
"""Image types by the first characters of their base64."""


class ThinkOption(Struct, frozen=True):
    """The option `think`. `wanted`: None means the model's default."""

    wanted: bool | None = None
    effort: str = ""


def read_think(body: Mapping[str, Any]) -> ThinkOption:
    value = body.get("think")
    if value is None:
        return ThinkOption()
    if isinstance(value, bool):
        return ThinkOption(value)
    if value in ("low", "medium", "high"):
        return ThinkOption(True, str(value))
    raise InvalidRequest(f'invalid think value: {value!r} (must be "high", "medium", "low", true, or false)')


# -- chat ------------------------------------------------------------------------------------------------------------


def chat_body(body: Mapping[str, Any], messages: Sequence[Any], *, continues: bool) -> dict[str, Any]:
    """Return the chat request. `continues`: True if the answer continues an assistant message at the end."""
    think = read_think(body)
    wanted: dict[str, Any] = {"messages": _messages(messages), **format_fields(body, chat=True)}
    if tools := body.get("tools"):
        wanted["tools"] = [_tool(tool) for tool in tools] if isinstance(tools, list) else tools
    if (choice := body.get("tool_choice")) is not None:
        wanted["tool_choice"] = choice  # not in Ollama's API, but a client that sends it intends it
    if continues and wanted["messages"] and wanted["messages"][-1]["role"] == "assistant":
        wanted |= {"continue_final_message": True, "add_generation_prompt": False}
    if think.wanted is not None:
        wanted["chat_template_kwargs"] = {"enable_thinking": think.wanted}
    if think.effort:
        wanted["reasoning_effort"] = think.effort
    return wanted


def generate_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chat messages of an `/api/generate` request that is not raw: one user message, and `system` if set."""
    fields = Fields(body)
    user: dict[str, Any] = {"role": "user", "content": fields.string("prompt", default="")}
    if body.get("images"):
        user["images"] = body["images"]
    system = fields.string("system", default="")
    return [{"role": "system", "content": system}, user] if system else [user]


def _messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    ids = _CallIds()
    return [_message(index, message, ids) for index, message in enumerate(messages)]


class _CallIds:
    """Assigns ids to calls in order, and to the results that follow: by function name, else in order."""

    def __init__(self) -> None:
        self._n = 0
        self._open: list[tuple[str, str]] = []

    def of_call(self, call: Mapping[str, Any], name: str) -> str:
        self._n += 1
        found = call.get("id") or CALL_ID.format(self._n)
        self._open.append((name, found))
        return str(found)

    def of_result(self, name: str) -> str:
        index = next((i for i, (called, _) in enumerate(self._open) if called == name), 0)
        return self._open.pop(index)[1] if self._open else CALL_ID.format(0)


def _message(index: int, message: object, ids: _CallIds) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidRequest(f"messages[{index}]: must be an object, but is {json_type(message)}")
    fields = Fields(message)
    role = fields.string("role", default="")
    if role not in ("system", "user", "assistant", "tool"):
        raise InvalidRequest(f"messages[{index}]: invalid role '{role}': must be system, user, assistant or tool")
    shown: dict[str, Any] = {"role": role, "content": _content(fields)}
    if thinking := fields.string("thinking", default=""):
        shown["reasoning_content"] = thinking
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list):
            raise wrong_type("tool_calls", "array", calls)
        shown["tool_calls"] = [_call(call, ids) for call in calls]
    if role == "tool":
        name = fields.string("tool_name", "name", default="")
        shown |= {"name": name} if name else {}
        shown["tool_call_id"] = fields.string("tool_call_id", default="") or ids.of_result(name)
    return shown


def _call(call: object, ids: _CallIds) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest("Missing tool call name")
    function = {"name": function["name"], "arguments": function.get("arguments") or {}}
    return {"type": "function", "function": function, "id": ids.of_call(call, function["name"])}


def _content(fields: Fields) -> str | list[dict[str, Any]]:
    text = fields.string("content", default="")
    images = fields.strings("images", default=())
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    return [*parts, {"type": "text", "text": text}] if text else parts


def _data_url(image: str) -> str:
    if image.startswith("data:"):
        return image
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{image}"


def _tool(tool: object) -> object:
    """Add the type `function` if it is missing: Ollama's clients may omit it."""
    return {"type": "function", **{k: v for k, v in tool.items() if v is not None}} if isinstance(tool, dict) else tool


# -- completion ------------------------------------------------------------------------------------------------------


def format_fields(body: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """Return the fields for `format`, which is "json" or a JSON schema."""
    wanted = body.get("format")
    if wanted is None or wanted == "":
        return {}
    if wanted == "json":
        wanted = {"type": "object"}
    if not isinstance(wanted, dict):
        raise InvalidRequest(f'invalid format: {wanted!r}; expected "json" or a valid JSON Schema object')
    if not chat:
        return {"json_schema": wanted}
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": wanted}}}


def completion_fields(body: Mapping[str, Any], n_ctx: int) -> dict[str, Any]:
    """Return the completion fields for sampling, streaming and probabilities."""
    fields = Fields(body)
    wanted = {**_options(fields.object("options"), n_ctx), "stream": fields.boolean("stream", default=True)}
    top = fields.integer("top_logprobs", default=0)
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
    if fields.boolean("logprobs", default=False):
        wanted["n_probs"] = max(1, top)
    return wanted


def _options(options: Mapping[str, Any], n_ctx: int) -> dict[str, Any]:
    fields = Fields(options)
    wanted = {name: value for name, value in options.items() if name in _SAME}
    if options.get("num_predict") is not None:
        wanted["n_predict"] = max(-1, fields.integer("num_predict", default=-1))  # -2: until the context is full
    if options.get("num_keep") is not None:
        wanted["n_keep"] = max(-1, fields.integer("num_keep", default=0))
    if options.get("repeat_last_n") is not None:
        given = fields.integer("repeat_last_n", default=0)
        wanted["repeat_last_n"] = n_ctx if given < 0 else given
    known = {*_SAME, *_WHEN_LOADING, "num_predict", "num_keep", "repeat_last_n"}
    for name in options.keys() - known:
        log.warning("ignoring the unknown option %.40r in a request", name)
    for name in options.keys() & _WHEN_LOADING:
        log.debug("option %s has no effect on a loaded model", name)
    return wanted


def refuse_template(body: Mapping[str, Any]) -> None:
    if Fields(body).string("template", default=""):
        raise NotSupported(
            "template is not supported: Ollama's templates are in Go's format, this server's are in Jinja's"
        )
