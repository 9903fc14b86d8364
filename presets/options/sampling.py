"""The option table, part 4: defaults for sampling, which requests can override."""

from typing import Literal

from .option import OptionGroup, Repeat, option, within
from .values import DRY_BASE, Breakers, DryBase, Finite, JsonObject, LogitBias, SamplerNames, Seed, Switch, Temperature

_GRAMMARS = ("grammar", "grammar_file", "json_schema", "json_schema_file")
DEFAULT_SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
RANDOM_SEED = 0xFFFFFFFF


def _other_grammars(field: str) -> tuple[str, ...]:
    return tuple(name for name in _GRAMMARS if name != field)


class SamplingOptions(OptionGroup):
    title = "Sampling"

    samplers: SamplerNames = option(DEFAULT_SAMPLERS, "--samplers", "samplers in order, separated by ';'", hint="NAMES")
    seed: Seed = option(RANDOM_SEED, "-s --seed", "random seed; -1: a new one for each request", hint="N")
    ignore_eos: Switch = option(False, "--ignore-eos", "continue after an end-of-generation token")
    temperature: Temperature = option(
        0.8, "--temp --temperature", "randomness; 0: always the most likely token", env="TEMPERATURE", hint="N"
    )
    top_k: int = option(40, "--top-k", "number of most likely tokens to keep; 0: all", env="TOP_K", hint="N")
    top_p: float = option(
        0.95, "--top-p", "keep the most likely tokens up to this total probability; 1: all", env="TOP_P", hint="N"
    )
    min_p: float = option(
        0.05, "--min-p", "minimum probability relative to the most likely token; 0: off", env="MIN_P", hint="N"
    )
    top_n_sigma: float = option(
        -1.0, "--top-nsigma --top-n-sigma", "keep tokens within this number of standard deviations; -1: off", hint="N"
    )
    xtc_probability: float = option(
        0.0, "--xtc-probability", "probability that XTC removes the most likely tokens; 0: off", hint="N"
    )
    xtc_threshold: float = option(
        0.1, "--xtc-threshold", "minimum probability of tokens that XTC removes; 1: off", hint="N"
    )
    typical_p: float = option(1.0, "--typical --typical-p", "locally typical sampling; 1: off", hint="N")
    repeat_last_n: int = option(
        64, "--repeat-last-n", "number of last tokens for the penalties; 0: off", hint="N", limits=within(ge=0)
    )
    repeat_penalty: Finite = option(
        1.0, "--repeat-penalty", "penalty for repeated tokens; 1: off", env="REPEAT_PENALTY", hint="N", limits={"gt": 0}
    )
    presence_penalty: Finite = option(
        0.0, "--presence-penalty", "penalty for tokens that occurred before; 0: off", env="PRESENCE_PENALTY", hint="N"
    )
    frequency_penalty: Finite = option(
        0.0,
        "--frequency-penalty",
        "penalty for each earlier occurrence of a token; 0: off",
        env="FREQUENCY_PENALTY",
        hint="N",
    )
    dry_multiplier: float = option(0.0, "--dry-multiplier", "strength of DRY against repetition; 0: off", hint="N")
    dry_base: DryBase = option(DRY_BASE, "--dry-base", "base of DRY's penalty, which grows exponentially", hint="N")
    dry_allowed_length: int = option(
        2, "--dry-allowed-length", "length of repetitions that DRY does not penalize", hint="N"
    )
    dry_penalty_last_n: int = option(
        64, "--dry-penalty-last-n", "number of last tokens for DRY; 0: off", hint="N", limits=within(ge=0)
    )
    dry_sequence_breaker: Breakers = option(
        ("\n", ":", '"', "*"),
        "--dry-sequence-breaker",
        "text at which DRY starts again, instead of the defaults; repeat the option for several; none: no text",
        hint="TEXT",
        repeat=Repeat.MANY,
    )
    adaptive_target: float = option(
        -1.0,
        "--adaptive-target",
        "adaptive-p: prefer tokens near this probability; negative: off",
        hint="N",
        limits=within(le=1),
    )
    adaptive_decay: float = option(
        0.9, "--adaptive-decay", "adaptive-p: higher values adapt more slowly", hint="N", limits=within(0, 0.99)
    )
    dynatemp_range: float = option(0.0, "--dynatemp-range", "range of the dynamic temperature; 0: off", hint="N")
    dynatemp_exp: float = option(1.0, "--dynatemp-exp", "exponent of the dynamic temperature", hint="N")
    mirostat: int = option(
        0,
        "--mirostat",
        "use this Mirostat version instead of other samplers; 0: off",
        hint="0|1|2",
        limits=within(0, 2),
    )
    mirostat_lr: float = option(0.1, "--mirostat-lr", "Mirostat's learning rate", hint="N")
    mirostat_ent: float = option(5.0, "--mirostat-ent", "Mirostat's target entropy", hint="N")
    logit_bias: LogitBias = option(
        (),
        "-l --logit-bias",
        "make a token more or less likely: TOKEN_ID+BIAS or TOKEN_ID-BIAS",
        hint="BIAS",
        repeat=Repeat.COMMA,
    )
    grammar: str = option(
        "",
        "--grammar",
        "GBNF grammar for the output",
        hint="GBNF",
        replaces=_other_grammars("grammar"),
    )
    grammar_file: str = option(
        "",
        "--grammar-file",
        "file with a GBNF grammar for the output",
        hint="FILE",
        replaces=_other_grammars("grammar_file"),
    )
    json_schema: JsonObject = option(
        "",
        "-j --json-schema",
        "JSON schema for the output",
        hint="JSON",
        replaces=_other_grammars("json_schema"),
    )
    json_schema_file: str = option(
        "",
        "-jf --json-schema-file",
        "file with a JSON schema for the output",
        hint="FILE",
        replaces=_other_grammars("json_schema_file"),
    )
    grammar_matcher: Literal["llguidance", "llama.cpp"] = option(
        "llguidance",
        "--grammar-matcher",
        "what decides which tokens fit a grammar: llguidance limits the time of each step; llama.cpp's matcher accepts "
        "larger grammars, but an ambiguous one can delay the model's other answers without a limit",
        hint="MATCHER",
    )
    backend_sampling: Switch = option(
        False,
        "-bs --backend-sampling",
        "sample on the device",
        env="BACKEND_SAMPLING",
        notice="tokens are sampled on the CPU, with the same result",
    )
