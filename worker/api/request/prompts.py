"""The shapes a prompt may have in a request, turned into tokens.

A text; an array of tokens; an array that mixes both; `{"prompt_string": …}`; and, where several are allowed, an array
of those. Pure but for the vocabulary. With files in it a prompt is `media_prompts`' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import json_type

from ...engine.messages import MediaChunk
from .samplers import Tokenizer

T = TypeVar("T")

SHAPES = (
    '"prompt" elements must be a string, a list of tokens, a JSON object containing a prompt string, '
    "or a list of mixed strings & tokens."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: Sequence[int]
    media: tuple[MediaChunk, ...] = ()


def split_prompts(value: object) -> list[object]:
    """An array without a single token is an array of prompts; anything else is one prompt."""
    if isinstance(value, list) and not any(is_token(item) for item in value):
        return value
    return [value]


def tokenize_prompt(value: object, vocab: Tokenizer) -> list[int]:
    """Specials are added and parsed."""
    if isinstance(value, dict):
        if "prompt_string" not in value:
            raise InvalidRequest(SHAPES)
        value = value["prompt_string"]
    if isinstance(value, list):
        if not value:
            raise InvalidRequest('"prompt" must not be empty')
        if not any(map(is_token, value)):
            raise InvalidRequest(SHAPES)
    elif not isinstance(value, str):
        raise InvalidRequest(SHAPES)
    return tokenize_mixed(value, vocab, add_special=True, parse_special=True)


def tokenize_mixed(value: object, vocab: Tokenizer, *, add_special: bool, parse_special: bool) -> list[int]:
    """Specials go before the first text only if it stands first: tokens before it bring their own."""
    if isinstance(value, str):
        return vocab.tokenize(value, add_special, parse_special)
    if not isinstance(value, list):
        raise InvalidRequest(f"text must be a string or an array of strings and tokens, but is {json_type(value)}")
    tokens: list[int] = []
    for position, item in enumerate(value):
        if isinstance(item, str):
            tokens += vocab.tokenize(item, add_special and position == 0, parse_special)
        else:
            tokens.append(checked_token(item, vocab))
    return tokens


def checked_token(value: object, vocab: Tokenizer) -> int:
    if not is_token(value):
        raise InvalidRequest(f"a token must be an integer, but is {json_type(value)}")
    assert isinstance(value, int)
    if not 0 <= value < vocab.n_vocab:
        raise InvalidRequest(f"Prompt contains invalid tokens: {value} is not between 0 and {vocab.n_vocab - 1}")
    return value


def is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def n_characters(value: object) -> int:
    """A measure of the work that tokenizing `value` is."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return n_characters(value.get("prompt_string"))
    return sum(map(n_characters, value)) if isinstance(value, list) else 1


OFF_LOOP_CHARACTERS = 4096
"""Longer texts are worked on by another thread: about a millisecond, in which the loop would serve nobody else."""


async def maybe_off_loop(n_characters: int, work: Callable[[], T]) -> T:
    """Short work here and now, long work on another thread."""
    return work() if n_characters <= OFF_LOOP_CHARACTERS else await asyncio.to_thread(work)
