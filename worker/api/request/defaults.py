"""The defaults for fields that a request does not set, from the server's options and the model's metadata.

They are read once, when the model has been loaded. An option that the user set overrides the model's value.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.user_files import read_text_of
from llama_corral.presets.options.settings import Settings
from msgspec.structs import replace

from ...chat.request import ChatDefaults
from ...engine.messages import Grammar, Sampling
from ...grammar.converter import schema_grammar
from ...grammar.schema import SchemaError
from .grammars import ANY_OBJECT
from .params import CompletionParams
from .samplers import sampler_names
from .thinking import ThinkingDefaults

log = logging.getLogger("corral.worker")

VERBOSE_LOG = 10
"""From this log verbosity on, answers contain `__verbose`; `-v` sets a higher one."""

_MODEL_FIELDS = {
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "temp": ("temperature", float),
    "penalty_last_n": ("repeat_last_n", int),
    "penalty_repeat": ("repeat_penalty", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}
"""GGUF keys `general.sampling.*`: the field that each one sets, and its type."""

_OPTION_OF = {"mirostat_tau": "mirostat_ent", "mirostat_eta": "mirostat_lr"}


def completion_defaults(
    settings: Settings, metadata: Mapping[str, str], drafts: Sequence[str] = (), *, may_wait: bool = False
) -> CompletionParams:
    """Return the defaults. `may_wait`: a file may be a pipe, whose end is waited for. Raise ConfigError."""
    return CompletionParams(
        sampling=_with_model_values(_sampling(settings, may_wait=may_wait), settings, metadata),
        n_predict=settings.context.n_predict,
        stop=tuple(word for word in settings.endpoints.reverse_prompt if word),
        cache_prompt=settings.context.cache_prompt,
        verbose=settings.log.log_verbosity >= VERBOSE_LOG,
        sse_ping_interval=settings.http.sse_ping_interval,
        n_keep=settings.context.keep,
        speculative_types=_speculative_types(settings, drafts),
        n_cache_reuse=settings.context.cache_reuse,
        thinking=ThinkingDefaults(settings.chat.reasoning_budget, settings.chat.reasoning_budget_message),
        reasoning_format=settings.chat.reasoning_format if "reasoning_format" in settings.options_set else "deepseek",
    )


def _speculative_types(settings: Settings, used: Sequence[str]) -> str:
    """Return the speculative types in llama-server's format: those of the options, else those in use."""
    kinds = [kind for kind in settings.drafts.spec_type if kind != "none"]
    return ",".join(["none", *(kinds or used)])


def _grammar(settings: Settings, *, may_wait: bool) -> Grammar | None:
    """Return the grammar of `--grammar`, `--json-schema` or their file options, of which at most one is set."""
    text = settings.sampling.grammar or _read(settings.sampling.grammar_file, "--grammar-file", may_wait=may_wait)
    schema = settings.sampling.json_schema or _read(
        settings.sampling.json_schema_file, "--json-schema-file", may_wait=may_wait
    )
    if schema and not text:
        try:
            text = schema_grammar(json.loads(schema) or ANY_OBJECT)
        except (ValueError, SchemaError) as error:
            option = (
                "--json-schema"
                if settings.sampling.json_schema
                else f"--json-schema-file {settings.sampling.json_schema_file}"
            )
            raise ConfigError(f"{option}: {error}") from None
    return Grammar(text) if text else None


def _read(path: str, option: str, *, may_wait: bool) -> str:
    return read_text_of(option, path, may_wait=may_wait) if path else ""


def _sampling(settings: Settings, *, may_wait: bool) -> Sampling:
    given = settings.sampling
    return Sampling(
        seed=given.seed,
        temperature=given.temperature,
        dynatemp_range=given.dynatemp_range,
        dynatemp_exponent=given.dynatemp_exp,
        top_k=given.top_k,
        top_p=given.top_p,
        min_p=given.min_p,
        top_n_sigma=given.top_n_sigma,
        xtc_probability=given.xtc_probability,
        xtc_threshold=given.xtc_threshold,
        typical_p=given.typical_p,
        repeat_last_n=given.repeat_last_n,
        repeat_penalty=given.repeat_penalty,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        dry_multiplier=given.dry_multiplier,
        dry_base=given.dry_base,
        dry_allowed_length=given.dry_allowed_length,
        dry_penalty_last_n=given.dry_penalty_last_n,
        dry_sequence_breakers=given.dry_sequence_breaker,
        mirostat=cast(Literal[0, 1, 2], given.mirostat),
        mirostat_tau=given.mirostat_ent,
        mirostat_eta=given.mirostat_lr,
        adaptive_target=given.adaptive_target,
        adaptive_decay=given.adaptive_decay,
        samplers=given.samplers,
        logit_bias=given.logit_bias,
        ignore_eos=given.ignore_eos,
        grammar=_grammar(settings, may_wait=may_wait),
        grammar_matcher=given.grammar_matcher,
        backend_sampling=given.backend_sampling,
    )


def _with_model_values(sampling: Sampling, settings: Settings, metadata: Mapping[str, str]) -> Sampling:
    found: dict[str, Any] = {}
    for key, (field, kind) in _MODEL_FIELDS.items():
        text = metadata.get(f"general.sampling.{key}")
        if text is not None and _OPTION_OF.get(field, field) not in settings.options_set:
            try:
                found[field] = kind(text)
            except ValueError:
                log.warning("ignoring the model's general.sampling.%s: it is not a number", key)
    names = metadata.get("general.sampling.sequence")
    if names and "samplers" not in settings.options_set:
        found["samplers"] = sampler_names(names.split(";")) or sampling.samplers
    return replace(sampling, **found)


def chat_defaults(settings: Settings) -> ChatDefaults:
    variables: dict[str, Any] = (
        json.loads(settings.chat.chat_template_kwargs) if settings.chat.chat_template_kwargs else {}
    )
    if settings.chat.reasoning != "auto":
        variables["enable_thinking"] = settings.chat.reasoning != "off"
    if settings.chat.reasoning_effort not in ("", "default"):
        variables["reasoning_effort"] = settings.chat.reasoning_effort
    if settings.chat.reasoning_preserve is not None:
        variables["preserve_reasoning"] = settings.chat.reasoning_preserve
    variables.setdefault("preserve_reasoning", True)
    return ChatDefaults(settings.chat.prefill_assistant, variables, settings.chat.reasoning_format)
