"""The parts of a result that the dialects share: timings, usage, token probabilities, ids. Pure."""

from __future__ import annotations

import codecs
import secrets
import string
from collections.abc import Sequence
from typing import Any

from ...chat.parsing.deltas import Delta, ParsedMessage
from ...chat.parsing.reply import ReplyFormat, ReplyParser
from ...engine.messages import Finished, Timings, TokenProb, TokenProbs

LOWEST_FLOAT = -3.4028234663852886e38
"""Represents the logarithm of 0: JSON has no infinity."""

_ALPHABET = string.digits + string.ascii_letters


def random_id(prefix: str) -> str:
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(32))


def timings_json(timings: Timings) -> dict[str, Any]:
    """Return the timings with rates.

    The prompt rate counts only processed tokens, not cached ones. The generation rate does not count the first token,
    which needs no decode step.
    """
    steps = max(0, timings.predicted_n - 1)
    prompt_ms, predicted_ms = timings.prompt_ms, timings.predicted_ms
    shown: dict[str, Any] = {
        "cache_n": timings.cache_n,
        "prompt_n": timings.prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / timings.prompt_n if timings.prompt_n > 0 else 0.0,
        "prompt_per_second": 1e3 / prompt_ms * timings.prompt_n if prompt_ms > 0 else 0.0,
        "predicted_n": timings.predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / steps if steps else 0.0,
        "predicted_per_second": 1e3 / predicted_ms * steps if predicted_ms > 0 else 0.0,
    }
    if timings.draft_n > 0:
        shown["draft_n"] = timings.draft_n
        shown["draft_n_accepted"] = timings.draft_n_accepted
    return shown


def usage_json(results: Sequence[Finished], n: int) -> dict[str, Any]:
    """Return the token counts of the whole answer. A prompt's tokens are counted once for its `n` choices."""
    prompts = results[::n]
    prompt_tokens = sum(result.n_prompt for result in prompts)
    completion_tokens = sum(result.n_decoded for result in results)
    return {
        "completion_tokens": completion_tokens,
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(result.timings.cache_n for result in prompts)},
    }


def finish_reason(result: Finished, *, is_called: bool = False) -> str:
    """Return OpenAI's reason. `is_called`: the answer has calls and all of them are whole."""
    if result.stop_type not in ("eos", "word"):
        return "length"
    return "tool_calls" if is_called else "stop"


def last_deltas(parser: ReplyParser, result: Finished) -> list[Delta]:
    """End the parser as the result ended: by the model, by a stop word or by a limit."""
    return parser.end(truncated=_is_truncated(result), follows=result.stopping_word)


def parsed(reply: ReplyFormat, result: Finished) -> ParsedMessage:
    return reply.parse(result.text, truncated=_is_truncated(result), follows=result.stopping_word)


def _is_truncated(result: Finished) -> bool:
    """Return True if a limit or a stop word ended the answer, and not the model: its last call may be incomplete."""
    return result.stop_type != "eos"


def probs_json(probs: Sequence[TokenProbs], post_sampling: bool) -> list[dict[str, Any]]:
    name, list_name = ("prob", "top_probs") if post_sampling else ("logprob", "top_logprobs")
    return [
        {**_prob_json(entry.chosen, name), list_name: [_prob_json(alternative, name) for alternative in entry.top]}
        for entry in probs
    ]


def _prob_json(entry: TokenProb, name: str) -> dict[str, Any]:
    return {
        "id": entry.id,
        "token": codecs.utf_8_decode(entry.piece, "replace", False)[0],  # without an incomplete character at the end
        "bytes": list(entry.piece),
        name: max(entry.p, LOWEST_FLOAT),
    }
