"""The defaults for fields that a request does not set, from the server's options and the model's metadata.

They are read once, when the model has been loaded. An option that the user set overrides the model's value.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.options.settings import Settings

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
    settings: Settings, metadata: Mapping[str, str], drafts: Sequence[str] = ()
) -> CompletionParams:
    return CompletionParams(
        sampling=_with_model_values(_sampling(settings), settings, metadata),
        n_predict=settings.n_predict,
        stop=tuple(word for word in settings.reverse_prompt if word),
        cache_prompt=settings.cache_prompt,
        verbose=settings.log_verbosity >= VERBOSE_LOG,
        sse_ping_interval=settings.sse_ping_interval,
        n_keep=settings.keep,
        speculative_types=_speculative_types(settings, drafts),
        n_cache_reuse=settings.cache_reuse,
        thinking=ThinkingDefaults(settings.reasoning_budget, settings.reasoning_budget_message),
        reasoning_format=settings.reasoning_format if "reasoning_format" in settings.model_fields_set else "deepseek",
    )


def _speculative_types(settings: Settings, used: Sequence[str]) -> str:
    """Return the speculative types in llama-server's format: those of the options, else those in use."""
    kinds = [kind for kind in settings.spec_type if kind != "none"]
    return ",".join(["none", *(kinds or used)])


def _grammar(settings: Settings) -> Grammar | None:
    """Return the grammar of `--grammar`, `--json-schema` or their file options, of which at most one is set."""
    text = settings.grammar or _read(settings.grammar_file, "--grammar-file")
    schema = settings.json_schema or _read(settings.json_schema_file, "--json-schema-file")
    if schema and not text:
        try:
            text = schema_grammar(json.loads(schema) or ANY_OBJECT)
        except (ValueError, SchemaError) as error:
            option = "--json-schema" if settings.json_schema else f"--json-schema-file {settings.json_schema_file}"
            raise ConfigError(f"{option}: {error}") from None
    return Grammar(text) if text else None


def _read(path: str, option: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path}: {error}") from None


def _sampling(settings: Settings) -> Sampling:
    return Sampling(
        seed=settings.seed,
        temperature=settings.temperature,
        dynatemp_range=settings.dynatemp_range,
        dynatemp_exponent=settings.dynatemp_exp,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        top_n_sigma=settings.top_n_sigma,
        xtc_probability=settings.xtc_probability,
        xtc_threshold=settings.xtc_threshold,
        typical_p=settings.typical_p,
        repeat_last_n=settings.repeat_last_n,
        repeat_penalty=settings.repeat_penalty,
        presence_penalty=settings.presence_penalty,
        frequency_penalty=settings.frequency_penalty,
        dry_multiplier=settings.dry_multiplier,
        dry_base=settings.dry_base,
        dry_allowed_length=settings.dry_allowed_length,
        dry_penalty_last_n=settings.dry_penalty_last_n,
        dry_sequence_breakers=settings.dry_sequence_breaker,
        mirostat=cast(Literal[0, 1, 2], settings.mirostat),
        mirostat_tau=settings.mirostat_ent,
        mirostat_eta=settings.mirostat_lr,
        adaptive_target=settings.adaptive_target,
        adaptive_decay=settings.adaptive_decay,
        samplers=settings.samplers,
        logit_bias=settings.logit_bias,
        ignore_eos=settings.ignore_eos,
        grammar=_grammar(settings),
        backend_sampling=settings.backend_sampling,
    )


def _with_model_values(sampling: Sampling, settings: Settings, metadata: Mapping[str, str]) -> Sampling:
    found: dict[str, Any] = {}
    for key, (field, kind) in _MODEL_FIELDS.items():
        text = metadata.get(f"general.sampling.{key}")
        if text is not None and _OPTION_OF.get(field, field) not in settings.model_fields_set:
            try:
                found[field] = kind(text)
            except ValueError:
                log.warning("ignoring the model's general.sampling.%s: it is not a number", key)
    names = metadata.get("general.sampling.sequence")
    if names and "samplers" not in settings.model_fields_set:
        found["samplers"] = sampler_names(names.split(";")) or sampling.samplers
    return dataclasses.replace(sampling, **found)


def chat_defaults(settings: Settings) -> ChatDefaults:
    variables: dict[str, Any] = json.loads(settings.chat_template_kwargs) if settings.chat_template_kwargs else {}
    if settings.reasoning != "auto":
        variables["enable_thinking"] = settings.reasoning != "off"
    if settings.reasoning_effort not in ("", "default"):
        variables["reasoning_effort"] = settings.reasoning_effort
    if settings.reasoning_preserve is not None:
        variables["preserve_reasoning"] = settings.reasoning_preserve
    variables.setdefault("preserve_reasoning", True)
    return ChatDefaults(settings.prefill_assistant, variables, settings.reasoning_format)


def template_source(settings: Settings, of_model: str | None) -> str | None:
    """Return the template of `--chat-template-file`, `--chat-template` (text or a known name) or else the model."""
    if settings.chat_template_file:
        return _read(settings.chat_template_file, "--chat-template-file")
    return settings.chat_template or of_model
