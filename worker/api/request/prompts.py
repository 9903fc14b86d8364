"""Converts the forms that a prompt may have in a request to tokens.

The forms: a text; an array of tokens; an array of texts and tokens; `{"prompt_string": …}`; and an array of these where
several prompts are allowed. Pure apart from the vocabulary. `media_prompts` handles prompts with files.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import json_type
from msgspec import Struct

from ...engine.messages import MediaChunk
from .samplers import Tokenizer

SHAPES = (
    '"prompt" elements must be a string, a list of tokens, a JSON object containing a prompt string, '
    "or a list of mixed strings & tokens."
)


class Prompt(Struct, frozen=True):
    tokens: Sequence[int]
    media: tuple[MediaChunk, ...] = ()


def split_prompts(value: object) -> list[object]:
    """Return the list of prompts: an array without any token is a list of prompts, anything else is one prompt."""
    if isinstance(value, list) and not any(is_token(item) for item in value):
        return value
    return [value]


def tokenize_prompt(value: object, vocab: Tokenizer) -> list[int]:
    """Return the tokens of one prompt; special tokens are added and parsed. Raises InvalidRequest."""
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
    """Return the tokens of a text, or of an array of texts and tokens.

    With `add_special`, special tokens are added before a text only if it is the first entry: a prompt that starts with
    tokens is expected to contain them.
    """
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
    """Estimate the work of tokenizing `value`, in characters."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return n_characters(value.get("prompt_string"))
    return sum(map(n_characters, value)) if isinstance(value, list) else 1
