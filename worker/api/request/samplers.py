"""Reads the request fields `samplers`, `logit_bias` and `stop`.

`params` calls it. Texts that stand for tokens are tokenized with the model's vocabulary.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields, is_finite, wrong_type
from llama_corral.presets.options.values import SAMPLER_LETTERS, SAMPLER_NAMES

log = logging.getLogger("corral.worker")

_NAMES = SAMPLER_NAMES | {"typical_p": "typ_p"}
"""A request may also use the parameter's name `typical_p`."""


class Tokenizer(Protocol):
    """The part of a model's vocabulary that parsing a request needs."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def eog_tokens(self) -> Sequence[int]: ...

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]: ...

    def surrounded(self, tokens: Sequence[int]) -> list[int]: ...


def sampler_names(value: object) -> tuple[str, ...]:
    """Return the samplers of a list of names or a string of letters. Unknown ones are ignored, as in llama-server."""
    if isinstance(value, str):
        found = [SAMPLER_LETTERS.get(letter) for letter in value]
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                raise wrong_type("samplers", "string", item)
        found = [_NAMES.get(item.lower()) for item in value]
    else:
        raise wrong_type("samplers", "array of names or string of letters", value)
    if None in found:
        log.warning("ignoring unknown samplers in a request")
    return tuple(name for name in found if name is not None)


def logit_bias(value: object, vocab: Tokenizer) -> tuple[tuple[int, float], ...]:
    """Return the (token, bias) pairs of the field `logit_bias`. A text biases each of its tokens.

    The forms: `[[token or text, bias or false], …]` and `{token or text: bias or false}`.
    """
    if isinstance(value, list):
        pairs = [(item[0], item[1]) for item in value if isinstance(item, list) and len(item) == 2]
    elif isinstance(value, Mapping):
        pairs = [(_as_token(key), bias) for key, bias in value.items()]
    else:
        raise wrong_type("logit_bias", "array or object", value)
    return tuple(entry for key, bias in pairs for entry in _biased(key, bias, vocab))


def _as_token(key: str) -> int | str:
    return int(key) if re.fullmatch(r"[+-]?[0-9]{1,9}", key) else key


def _biased(key: object, bias: object, vocab: Tokenizer) -> Iterator[tuple[int, float]]:
    if bias is False:
        amount = -math.inf
    elif isinstance(bias, (int, float)) and not isinstance(bias, bool):
        if not is_finite(bias):
            raise InvalidRequest("Field 'logit_bias': a bias must be a finite number or false", "logit_bias")
        amount = float(bias)
    else:
        return
    if isinstance(key, str):
        for token in vocab.tokenize(key, False, False):
            yield token, amount
    elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key < vocab.n_vocab:
        yield key, amount


def stop_strings(fields: Fields, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stop strings of the field `stop`, a string or an array. If all are empty, return the default."""
    value: Any = fields.body.get("stop")
    if value is None:
        return default
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise wrong_type("stop", "string or array of strings", value)
    for word in value:
        if not isinstance(word, str):
            raise wrong_type("stop", "string", word)
    return tuple(word for word in value if word) or default
