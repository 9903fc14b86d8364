"""`generation_settings`: the effective parameters of a request, as shown in final results, `/slots` and `/props`."""

from __future__ import annotations

from typing import Any

from .grammars import triggers_json
from .params import CompletionParams
from .scales import scales_json


def brief_settings(params: CompletionParams) -> dict[str, Any]:
    """Return the settings for `/slots` and `/props`, without the request's own texts and lists."""
    sampling = params.sampling
    return {
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "dynatemp_range": sampling.dynatemp_range,
        "dynatemp_exponent": sampling.dynatemp_exponent,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "top_n_sigma": sampling.top_n_sigma,
        "xtc_probability": sampling.xtc_probability,
        "xtc_threshold": sampling.xtc_threshold,
        "typical_p": sampling.typical_p,
        "repeat_last_n": sampling.repeat_last_n,
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "dry_multiplier": sampling.dry_multiplier,
        "dry_base": sampling.dry_base,
        "dry_allowed_length": sampling.dry_allowed_length,
        "dry_penalty_last_n": sampling.dry_penalty_last_n,
        "mirostat": sampling.mirostat,
        "mirostat_tau": sampling.mirostat_tau,
        "mirostat_eta": sampling.mirostat_eta,
        "adaptive_target": sampling.adaptive_target,
        "adaptive_decay": sampling.adaptive_decay,
        "max_tokens": params.n_predict,
        "n_predict": params.n_predict,
        "n_keep": params.n_keep,
        "n_discard": params.n_discard,
        "ignore_eos": sampling.ignore_eos,
        "stream": params.stream,
        "n_probs": sampling.n_probs,
        "min_keep": sampling.min_keep,
        "chat_format": params.chat_format,
        "reasoning_format": params.reasoning_format,
        "reasoning_in_content": params.stream and params.reasoning_format == "deepseek-legacy",
        "generation_prompt": params.generation_prompt,
        "samplers": list(sampling.samplers),
        "speculative.types": params.speculative_types,
        "timings_per_token": params.timings_per_token,
        "post_sampling_probs": sampling.post_sampling_probs,
        "backend_sampling": sampling.backend_sampling,
        "lora": scales_json(params.lora),
    }


def full_settings(params: CompletionParams) -> dict[str, Any]:
    """Return the settings for a final result. A bias of minus infinity becomes `null` in JSON."""
    sampling, grammar = params.sampling, params.sampling.grammar
    return {
        **brief_settings(params),
        "dry_sequence_breakers": list(sampling.dry_sequence_breakers),
        "stop": list(params.stop),
        "logit_bias": [{"bias": bias, "token": token} for token, bias in sampling.logit_bias],
        "grammar": grammar.text if grammar else "",
        "grammar_lazy": bool(grammar and grammar.lazy),
        "grammar_triggers": triggers_json(grammar.triggers) if grammar else [],
        "preserved_tokens": sorted(params.preserved_tokens),
    }
