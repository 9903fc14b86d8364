"""The largest size of each list and text in a request, checked before anything is done with them. Pure.

The work for a field grows with its size, and often all other requests wait for it. The limits are far above what
clients send. A text that becomes part of the prompt is limited by the context when it is tokenized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from msgspec import Struct

MAX_PROBS = 1024
"""The largest number of alternatives for each token, with their probabilities."""
MAX_PROMPTS = 2048
"""The largest number of prompts or inputs in one request; the same as OpenAI's limit."""
MAX_DOCUMENTS = 10_000
"""The largest number of documents to rank in one request."""
MAX_MESSAGES = 16_384
"""The largest number of messages, or of items of a conversation."""
MAX_TOKENS = 1_000_000
"""The largest number of token ids in one list."""


class Limit(Struct, frozen=True):
    """The largest number of entries of an array or object, and of characters in a text or in all entries together.

    None: there is no such limit, because the model's context limits it or it is only stored.
    """

    entries: int | None = None
    characters: int | None = None


_NAME = Limit(characters=4096)
_WORDS = Limit(256, 16 << 10)
_OBJECT = Limit(1024, 256 << 10)
_SCHEMA = Limit(65_536)
_PROMPT = Limit(MAX_TOKENS)

LIMITS: Mapping[str, Limit] = {
    # sampling
    "samplers": Limit(64, 1024),
    "logit_bias": Limit(65_536, 256 << 10),
    "dry_sequence_breakers": Limit(128, 4096),
    **dict.fromkeys(("stop", "stop_sequences"), _WORDS),
    "preserved_tokens": Limit(1024, 64 << 10),
    "message_delimiters": Limit(64, 4096),
    "lora": Limit(1024),
    "response_fields": Limit(1024, 64 << 10),
    # constraints
    "grammar": Limit(characters=1 << 20),
    **dict.fromkeys(("json_schema", "response_format", "format", "output_format", "output_config", "text"), _SCHEMA),
    "grammar_triggers": Limit(1024, 64 << 10),
    **dict.fromkeys(("grammar_type", "reasoning_format", "encoding_format", "reasoning_effort"), _NAME),
    **dict.fromkeys(("reasoning_budget_start_tag", "reasoning_budget_end_tag"), _NAME),
    "reasoning_budget_end_tags": Limit(64, 4096),
    "reasoning_budget_message": Limit(characters=16 << 10),
    "generation_prompt": Limit(characters=256 << 10),
    # prompts and conversations
    **dict.fromkeys(("prompt", "input", "content", "input_prefix", "input_suffix", "context", "tokens"), _PROMPT),
    **dict.fromkeys(("messages", "system"), Limit(MAX_MESSAGES)),
    **dict.fromkeys(("documents", "texts"), Limit(MAX_DOCUMENTS)),
    **dict.fromkeys(("query", "suffix", "instructions"), Limit()),
    "input_extra": Limit(4096),
    "images": Limit(1024),
    "tools": Limit(1024),
    # objects
    "chat_template_kwargs": Limit(1024),  # may have documents that the template writes into the prompt
    **dict.fromkeys(("metadata", "options", "stream_options", "thinking"), _OBJECT),
    **dict.fromkeys(("tool_choice", "reasoning", "think", "include", "mcp_servers", "conversation_ids"), _OBJECT),
    # names
    **dict.fromkeys(("model", "name", "id", "action", "filename", "template", "previous_response_id"), _NAME),
    **dict.fromkeys(("truncation", "continue_final_message", "keep_alive", "ttl", "language"), _NAME),
    **dict.fromkeys(("user", "prompt_cache_key", "safety_identifier"), _NAME),
    **dict.fromkeys(("background", "conversation"), _OBJECT),
}
"""The limits by the field's name, which means the same in every dialect. Of other fields a request has only numbers,
which have ranges, and fields without effect."""

_HOLDING_FIELDS = ("options",)
"""Objects that contain such fields."""


def check_limits(body: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for the first field that is larger than its limit."""
    for name, value in body.items():
        if isinstance(value, (str, list, dict)) and name in LIMITS:
            check_limit(name, value)
    for name in _HOLDING_FIELDS:
        if isinstance(inside := body.get(name), dict):
            check_limits(inside)


def check_limit(name: str, value: str | list[Any] | dict[str, Any]) -> None:
    limit = LIMITS[name]
    if not isinstance(value, str) and limit.entries is not None and len(value) > limit.entries:
        raise too_large(name, len(value), limit.entries, "entries")
    if limit.characters is not None and (n := _n_characters(value)) > limit.characters:
        raise too_large(name, n, limit.characters, "characters")


def check_number(name: str, n: int, limit: int) -> None:
    """Raise InvalidRequest if a field has more than `limit` entries. For fields whose limit depends on their form."""
    if n > limit:
        raise too_large(name, n, limit, "entries")


def too_large(name: str, n: int, limit: int, unit: str) -> InvalidRequest:
    return InvalidRequest(f"Field '{name}': must have at most {limit} {unit}, but has {n}", name)


def _n_characters(value: object) -> int:
    """Count the characters of all texts in a value. Entries that are arrays or objects are counted, too."""
    return len(value) if isinstance(value, str) else sum(map(len, _texts(value, 2)))


def _texts(value: object, levels: int) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and levels:
        for item in value:
            if isinstance(item, (str, list, dict)):
                yield from _texts(item, levels - 1)


_TOKENIZED = ("logit_bias", "preserved_tokens", "message_delimiters", "grammar_triggers", "samplers", "stop")


def reading_work(body: Mapping[str, Any]) -> int:
    """Estimate the work of reading the sampling fields, in characters to tokenize; an entry counts as 16."""
    values = [value for name in _TOKENIZED if isinstance(value := body.get(name), (str, list, dict))]
    return sum(_n_characters(value) + (0 if isinstance(value, str) else 16 * len(value)) for value in values)
