"""Request fields: defaults, aliases, clamps, refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ApiError, InvalidRequest
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.json_fields import INT32_MAX, Fields
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.api.request.defaults import completion_defaults
from llama_corral.worker.api.request.generation_settings import brief_settings, full_settings
from llama_corral.worker.api.request.media_prompts import read_prompts
from llama_corral.worker.api.request.params import CompletionParams, read_params
from llama_corral.worker.api.request.prompts import split_prompts
from llama_corral.worker.engine.messages import MediaChunk, PromptText, Sampling


class Letters:
    """A vocabulary with one token per character, 1 as BOS and 2 and 3 as end-of-generation tokens."""

    n_vocab = 1000
    eog_tokens: Sequence[int] = (2, 3)

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        return [1] * add_special + [min(ord(letter), 999) for letter in text]


VOCAB = Letters()


class TextOnly:
    """A model without a projector."""

    vocab = VOCAB
    media = None
    n_ctx = 512

    def tokenize_media(
        self, parts: Sequence[PromptText], files: Sequence[bytes]
    ) -> tuple[tuple[int, ...], tuple[MediaChunk, ...]]:
        raise AssertionError("asked without a projector")


async def prompt_tokens(prompt: object) -> list[list[int]]:
    return [list(prompt.tokens) for prompt in await read_prompts(prompt, TextOnly())]


DEFAULTS = CompletionParams(stop=("</s>",), n_predict=64)


def read(body: dict[str, Any], defaults: CompletionParams = DEFAULTS, n_slots: int = 4) -> CompletionParams:
    return read_params(body, defaults, VOCAB, n_slots)


def test_an_empty_request_gets_the_defaults() -> None:
    assert read({}) == DEFAULTS


def test_null_is_absent() -> None:
    names = ["n_predict", "stream", "stop", "seed", "samplers", "logit_bias", "stream_options", "grammar", "tools"]
    assert read(dict.fromkeys(names)) == DEFAULTS


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"max_tokens": 5}, "n_predict", 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, "n_predict", 6),
        ({"n_predict": 7, "max_completion_tokens": 6}, "n_predict", 7),
        ({"n_predict": 8.0}, "n_predict", 8),
        ({"n": 2}, "n", 2),
        ({"n_cmpl": 3, "n": 2}, "n", 3),
        ({"stop": "x"}, "stop", ("x",)),
        ({"stop": ["", "y"]}, "stop", ("y",)),
        ({"stop": []}, "stop", ("</s>",)),
        ({"stop": ""}, "stop", ("</s>",)),
        ({"stream_options": {"include_usage": True}}, "include_usage", True),
        ({"cache_prompt": False}, "cache_prompt", False),
        ({"id_slot": 9}, "id_slot", 9),
    ],
)
def test_fields_and_their_aliases(body: dict[str, Any], field: str, value: object) -> None:
    assert getattr(read(body), field) == value


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"seed": -1}, "seed", 0xFFFFFFFF),
        ({"seed": 42}, "seed", 42),
        ({"temperature": -2}, "temperature", 0.0),
        ({"top_k": -5}, "top_k", 0),
        ({"top_p": 7}, "top_p", 1.0),
        ({"min_p": -1}, "min_p", 0.0),
        ({"mirostat": 9}, "mirostat", 2),
        ({"adaptive_target": 3}, "adaptive_target", 1.0),
        ({"dry_base": 0.5}, "dry_base", 1.75),
        ({"logprobs": 3}, "n_probs", 3),
        ({"n_probs": 2, "logprobs": 3}, "n_probs", 2),
        ({"logprobs": True}, "n_probs", 1),
        ({"samplers": ["top_k", "TEMP", "nucleus", "min-p"]}, "samplers", ("top_k", "temperature", "top_p", "min_p")),
        ({"samplers": "kt"}, "samplers", ("top_k", "temperature")),
        ({"samplers": ["unheard-of", "dry"]}, "samplers", ("dry",)),
        ({"logit_bias": [[5, -100], [6, False], ["ab", 1.5], [5000, 1], ["x"], 3]}, "logit_bias",
         ((5, -100.0), (6, -math.inf), (97, 1.5), (98, 1.5))),
        ({"logit_bias": {"5": 1, " a": -1, "c": True}}, "logit_bias", ((5, 1.0), (32, -1.0), (97, -1.0))),
        ({"ignore_eos": True}, "logit_bias", ((2, -math.inf), (3, -math.inf))),
    ],
)  # fmt: skip
def test_sampling_fields(body: dict[str, Any], field: str, value: object) -> None:
    assert getattr(read(body).sampling, field) == value


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"n_predict": "8"}, "n_predict"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"n_predict": -2}, "n_predict"),
        ({"n_predict": 2**40}, "n_predict"),
        ({"n": 5}, "n"),
        ({"n": 0}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"stream": 1}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"repeat_last_n": -1}, "repeat_last_n"),
        ({"dry_penalty_last_n": -1}, "dry_penalty_last_n"),
        ({"dry_sequence_breakers": []}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": [1]}, "dry_sequence_breakers"),
        ({"adaptive_decay": 1}, "adaptive_decay"),
        ({"sse_ping_interval": -2}, "sse_ping_interval"),
        ({"n_keep": -2}, "n_keep"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"samplers": 5}, "samplers"),
        ({"logit_bias": 5}, "logit_bias"),
        ({"response_fields": "content"}, "response_fields"),
        ({"reasoning_format": "odd"}, "reasoning_format"),
        ({"grammar": 5}, "grammar"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(body)
    assert f"'{named}'" in refused.value.message


@pytest.mark.parametrize("body", [{"lora": []}, {"grammar": ""}, {"reasoning_budget_tokens": -1}, {"user": "x"},
                                  {"speculative.p_min": 0.5}, {"store": True, "metadata": {}}])  # fmt: skip
def test_ignored_fields_are_accepted(body: dict[str, Any]) -> None:
    assert read(body) == DEFAULTS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = sorted([*Sampling.__struct_fields__, *CompletionParams.__struct_fields__, "max_tokens", "lora"])


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_any_json_is_read_or_refused(body: dict[str, Any]) -> None:
    try:
        params = read(body)
    except InvalidRequest:
        pass
    else:
        assert 1 <= params.n <= 4
        assert params.n_predict <= INT32_MAX
        assert 0 <= params.sampling.seed <= 0xFFFFFFFF
        encode_json(full_settings(params))


def test_generation_settings_have_llama_servers_names() -> None:
    shown = full_settings(read({"ignore_eos": True, "n_predict": 3}))
    assert shown["n_predict"] == shown["max_tokens"] == 3
    assert shown["logit_bias"][0] == {"bias": -math.inf, "token": 2}
    assert {"adaptive_target", "adaptive_decay", "speculative.types", "samplers", "lora", "stop"} <= shown.keys()
    assert not {"stop", "logit_bias", "grammar", "dry_sequence_breakers"} & brief_settings(read({})).keys()


def test_defaults_come_from_options_then_from_the_model() -> None:
    metadata = {
        "general.sampling.temp": "0.25",
        "general.sampling.top_k": "7",
        "general.sampling.mirostat_tau": "3.0",
        "general.sampling.min_p": "not a number",
        "general.sampling.sequence": "top_k;temperature",
    }
    defaults = completion_defaults(Settings.of(model="x.gguf", top_k=50, seed=3, reverse_prompt=("END",)), metadata)
    assert defaults.stop == ("END",)
    sampling = defaults.sampling
    assert (sampling.seed, sampling.top_k, sampling.temperature) == (3, 50, 0.25)
    assert (sampling.mirostat_tau, sampling.min_p) == (3.0, 0.05)
    assert sampling.samplers == ("top_k", "temperature")


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("ab", [[1, 97, 98]]),
        ("", [[1]]),
        ([5, 6], [[5, 6]]),
        ([5, "a", 6, "b"], [[5, 97, 6, 98]]),
        (["a", 5], [[1, 97, 5]]),
        (["a", "b"], [[1, 97], [1, 98]]),
        ([[5, 6], "a", {"prompt_string": "b"}], [[5, 6], [1, 97], [1, 98]]),
        ({"prompt_string": [5, "a"]}, [[5, 97]]),
    ],
)
async def test_forms_of_a_prompt(prompt: object, tokens: list[list[int]]) -> None:
    assert await prompt_tokens(prompt) == tokens


@pytest.mark.parametrize(
    "prompt", [5, None, True, [], [[]], {}, [["a"]], [5, 1000], [-1], [[1, None]], {"prompt_string": 5}]
)
async def test_wrong_prompts(prompt: object) -> None:
    with pytest.raises(InvalidRequest):
        await prompt_tokens(prompt)


async def test_media_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="does not support multimodal"):
        await prompt_tokens({"prompt_string": "a", "multimodal_data": "AAAA"})


@given(JSON)
async def test_any_json_prompt_is_tokens_or_refused(prompt: object) -> None:
    try:
        prompts = await prompt_tokens(prompt)
    except ApiError:
        return
    assert all(0 <= token < VOCAB.n_vocab for tokens in prompts for token in tokens)
    assert len(prompts) == len(split_prompts(prompt))


def test_fields_use_the_first_alias_that_is_set() -> None:
    assert Fields({"b": 1}).find("a", "b") == ("b", 1)
    assert Fields({"a": None}).find("a", "b") == ("a", None)
