"""Parses the fields of a completion request, in any dialect, into a `CompletionParams`.

`read_params` applies a request's fields to the server's defaults. Ranges, clamps and aliases are those of llama-server.
Unknown fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields
from msgspec import Struct, field
from msgspec.structs import replace

from ...chat.parsing.reply import PLAIN, ReplyFormat
from ...chat.request import REASONING_FORMATS
from ...engine.messages import Generation, Sampling
from ...engine.runner import LoadedModel
from ...grammar.work import Budget
from .delimiters import MessageDelimiter, read_delimiters, user_starts
from .grammars import preserved_tokens, read_grammar
from .limits import MAX_PROBS, reading_work
from .prompts import Prompt
from .reading import PromptReader
from .samplers import Tokenizer, logit_bias, sampler_names, stop_strings
from .scales import Scales, read_scales
from .thinking import ThinkingDefaults, read_thinking
from .turns import in_turn


class CompletionParams(Struct, frozen=True):
    sampling: Sampling = field(default_factory=Sampling)
    n_predict: int = -1
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    cache_prompt: bool = True
    return_tokens: bool = False
    return_progress: bool = False
    timings_per_token: bool = False
    verbose: bool = False
    sse_ping_interval: int = 30  # seconds; -1: off
    response_fields: tuple[str, ...] = ()
    id_slot: int = -1
    n_keep: int = 0
    n_discard: int = 0
    n_indent: int = 0
    n_cache_reuse: int = 0
    t_max_predict_ms: float = -1.0
    reasoning_format: str = "none"
    chat_format: str = "Content-only"
    lora: Scales = ()
    preserved_tokens: frozenset[int] = frozenset()
    generation_prompt: str = ""
    speculative_types: str = "none"  # only for display: a request cannot set it
    reply: ReplyFormat = PLAIN  # how the answer to a chat is parsed
    thinking: ThinkingDefaults = field(default_factory=ThinkingDefaults)
    reasoning_control: bool = False

    delimiters: tuple[MessageDelimiter, ...] = ()  # of the prompt's messages

    def with_chosen_probs(self) -> CompletionParams:
        """Return these params with the probability of each chosen token, also if no alternatives are wanted."""
        return replace(self, sampling=replace(self.sampling, chosen_probs=True))

    def generation(self, prompt: Prompt, settings: object) -> Generation:
        return Generation(
            tokens=prompt.tokens,
            user_starts=user_starts(prompt.tokens, self.delimiters) if self.delimiters else (),
            media=prompt.media,
            sampling=self.sampling,
            n=self.n,
            n_predict=self.n_predict,
            stop=self.stop,
            stream=self.stream,
            cache_prompt=self.cache_prompt,
            n_cache_reuse=self.n_cache_reuse,
            id_slot=self.id_slot,
            n_keep=self.n_keep,
            n_discard=self.n_discard,
            n_indent=self.n_indent,
            t_max_predict_ms=self.t_max_predict_ms,
            return_progress=self.return_progress and self.stream,
            timings_per_token=self.timings_per_token,
            adapters=self.lora,
            preserved_tokens=self.preserved_tokens,
            settings=settings,
        )


def read_params(
    body: Mapping[str, Any], defaults: CompletionParams, vocab: Tokenizer, n_slots: int, budget: Budget | None = None
) -> CompletionParams:
    """Return the defaults with the request's fields applied. Raises InvalidRequest, which names the wrong field.

    `budget`: for the grammar of a schema.
    """
    fields = Fields(body)
    options = Fields(fields.object("stream_options"))
    preserved = preserved_tokens(fields, vocab)
    return replace(
        defaults,
        sampling=_sampling(fields, defaults, preserved, vocab, budget),
        reasoning_control=fields.boolean("reasoning_control", default=False),
        preserved_tokens=preserved,
        delimiters=read_delimiters(fields, vocab),
        generation_prompt=fields.string("generation_prompt", default=""),
        reasoning_format=_reasoning_format(fields, defaults.reasoning_format),
        n_predict=fields.integer(
            "n_predict", "max_completion_tokens", "max_tokens", default=defaults.n_predict, low=-1
        ),
        n=fields.integer("n_cmpl", "n", default=1, low=1, high=n_slots),
        stop=stop_strings(fields, defaults.stop),
        stream=fields.boolean("stream", default=False),
        include_usage=options.boolean("include_usage", default=False),
        cache_prompt=fields.boolean("cache_prompt", default=defaults.cache_prompt),
        return_tokens=fields.boolean("return_tokens", default=False),
        return_progress=fields.boolean("return_progress", default=False),
        timings_per_token=fields.boolean("timings_per_token", default=False),
        verbose=fields.boolean("verbose", default=defaults.verbose),
        sse_ping_interval=fields.integer("sse_ping_interval", default=defaults.sse_ping_interval, low=-1),
        response_fields=fields.strings("response_fields", default=()),
        id_slot=fields.integer("id_slot", default=-1),
        lora=read_scales(body["lora"]) if body.get("lora") is not None else (),
        n_keep=fields.integer("n_keep", default=defaults.n_keep, low=-1),
        n_discard=fields.integer("n_discard", default=0, low=0),
        n_indent=fields.integer("n_indent", default=0, low=0),
        n_cache_reuse=fields.integer("n_cache_reuse", default=defaults.n_cache_reuse, low=0),
        t_max_predict_ms=fields.integer("t_max_predict_ms", default=-1, low=-1, high=2**63 - 1),
    )


async def params_of(body: Mapping[str, Any], defaults: CompletionParams, loaded: LoadedModel) -> CompletionParams:
    """Call `read_params`, off the event loop if it may take long. Prepare what the samplers need.

    A schema is always converted off the loop: a small one may take as long as a large one.
    """
    reader, n_slots = PromptReader(loaded.vocab), loaded.info.n_slots
    if body.get("json_schema") is None:
        params = await reader.run(reading_work(body), lambda: read_params(body, defaults, reader, n_slots))
    else:
        params = await in_turn(
            lambda *, soon, given_up: read_params(
                body, defaults, PromptReader(loaded.vocab), n_slots, Budget(given_up=given_up, soon=soon)
            )
        )
    return replace(params, sampling=await loaded.prepare_for(params.sampling))


def _sampling(
    fields: Fields, defaults: CompletionParams, preserved: frozenset[int], vocab: Tokenizer, budget: Budget | None
) -> Sampling:
    base = defaults.sampling
    thinking = read_thinking(fields, defaults.thinking)
    ignore_eos = fields.boolean("ignore_eos", default=base.ignore_eos)
    bias = base.logit_bias
    if (value := fields.body.get("logit_bias")) is not None:
        bias = logit_bias(value, vocab)
    if ignore_eos:
        bias = (*bias, *((token, float("-inf")) for token in vocab.eog_tokens))
    grammar = read_grammar(fields, base.grammar, preserved, vocab, thinking, budget)
    samplers = fields.body.get("samplers")
    return replace(
        base,
        **_dice(fields, base),
        **_penalties(fields, base),
        samplers=base.samplers if samplers is None else sampler_names(samplers),
        logit_bias=bias,
        ignore_eos=ignore_eos,
        n_probs=_n_probs(fields),
        post_sampling_probs=fields.boolean("post_sampling_probs", default=False),
        grammar=None if grammar is None else replace(grammar, matcher=base.grammar_matcher),
        thinking=thinking if thinking is not None and (thinking.budget >= 0 or thinking.control) else None,
        backend_sampling=fields.boolean("backend_sampling", default=base.backend_sampling),
    )


def _dice(fields: Fields, base: Sampling) -> dict[str, Any]:
    return {
        "seed": fields.integer("seed", default=base.seed, low=-(2**63), high=2**63) & 0xFFFFFFFF,
        "temperature": fields.real("temperature", default=base.temperature, low=0.0),
        "dynatemp_range": fields.real("dynatemp_range", default=base.dynatemp_range),
        "dynatemp_exponent": fields.real("dynatemp_exponent", default=base.dynatemp_exponent),
        "top_k": fields.clamped_integer("top_k", default=base.top_k, low=0),
        "top_p": fields.real("top_p", default=base.top_p, low=0.0, high=1.0),
        "min_p": fields.real("min_p", default=base.min_p, low=0.0, high=1.0),
        "top_n_sigma": fields.real("top_n_sigma", default=base.top_n_sigma),
        "xtc_probability": fields.real("xtc_probability", default=base.xtc_probability, low=0.0, high=1.0),
        "xtc_threshold": fields.real("xtc_threshold", default=base.xtc_threshold, low=0.0, high=1.0),
        "typical_p": fields.real("typical_p", default=base.typical_p),
        "mirostat": fields.clamped_integer("mirostat", default=base.mirostat, low=0, high=2),
        "mirostat_tau": fields.real("mirostat_tau", default=base.mirostat_tau),
        "mirostat_eta": fields.real("mirostat_eta", default=base.mirostat_eta),
        "adaptive_target": fields.real("adaptive_target", default=base.adaptive_target, high=1.0),
        "adaptive_decay": fields.limited_real("adaptive_decay", default=base.adaptive_decay, low=0.0, high=0.99),
        "min_keep": fields.integer("min_keep", default=base.min_keep, low=0),
    }


def _penalties(fields: Fields, base: Sampling) -> dict[str, Any]:
    breakers = fields.strings("dry_sequence_breakers", default=base.dry_sequence_breakers)
    if not breakers:
        raise InvalidRequest(
            "Field 'dry_sequence_breakers': Error: dry_sequence_breakers must be a non-empty array of strings"
        )
    dry_base = fields.real("dry_base", default=base.dry_base)
    return {
        "repeat_last_n": fields.integer("repeat_last_n", default=base.repeat_last_n, low=0),
        "repeat_penalty": fields.real("repeat_penalty", default=base.repeat_penalty),
        "presence_penalty": fields.real("presence_penalty", default=base.presence_penalty),
        "frequency_penalty": fields.real("frequency_penalty", default=base.frequency_penalty),
        "dry_multiplier": fields.real("dry_multiplier", default=base.dry_multiplier),
        "dry_base": dry_base if dry_base >= 1.0 else base.dry_base,
        "dry_allowed_length": fields.integer("dry_allowed_length", default=base.dry_allowed_length, low=0),
        "dry_penalty_last_n": fields.integer("dry_penalty_last_n", default=base.dry_penalty_last_n, low=0),
        "dry_sequence_breakers": breakers,
    }


def _n_probs(fields: Fields) -> int:
    """Return the number of probabilities per token.

    `logprobs` is a number in completions and a boolean in chats, where `top_logprobs` has become `n_probs` already.
    """
    name, value = fields.find("n_probs", "logprobs")
    if isinstance(value, bool):
        return int(value)
    return max(0, Fields({name: value}).integer(name, default=0, high=MAX_PROBS))


def _reasoning_format(fields: Fields, default: str) -> str:
    name = fields.string("reasoning_format", default=default)
    if name not in REASONING_FORMATS:
        raise InvalidRequest(f"Field 'reasoning_format': Unknown reasoning format: {name}")
    return name
