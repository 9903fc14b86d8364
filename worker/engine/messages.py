"""What the HTTP side and the engine thread say to each other: small, frozen, and all of it here.

Text is `str`, tokens are ids of the model's vocabulary, times are milliseconds, positions count tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from llama_corral.common.base.errors import ApiError
from llama_corral.presets.options.sampling import DEFAULT_SAMPLERS, RANDOM_SEED

TriggerKind = Literal["token", "word", "pattern", "pattern_full"]


@dataclass(frozen=True, slots=True)
class Trigger:
    """What wakes a lazy grammar: a token, a word, a regular expression found in the text or matching all of it."""

    kind: TriggerKind
    value: str
    token: int = -1


@dataclass(frozen=True, slots=True)
class Thinking:
    """How an answer's thoughts stand in its text, and how many tokens they may take."""

    start: str  # empty: the answer begins with them
    ends: tuple[str, ...]  # the first one is put in when the budget is spent, behind the message
    opening: str = ""  # the end of the prompt, which may have opened them
    budget: int = -1  # -1: no limit
    message: str = ""
    control: bool = False  # whether they may be ended from outside


@dataclass(frozen=True, slots=True)
class Grammar:
    """GBNF that an answer follows, a lazy one from the trigger on."""

    text: str
    lazy: bool = False
    triggers: tuple[Trigger, ...] = ()
    prefill: str = ""  # the end of the prompt, if the grammar begins there
    thinking: Thinking | None = None  # nothing in thoughts wakes a lazy one


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one token is chosen. Defaults are llama-server's; names are those of `generation_settings`."""

    seed: int = RANDOM_SEED
    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    min_keep: int = 0
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    n_probs: int = 0
    post_sampling_probs: bool = False
    grammar: Grammar | None = None
    thinking: Thinking | None = None
    backend_sampling: bool = False


def seed_of(seed: int, choice: int) -> int:
    """Of the choices of a request each has its own, unless chance is asked for."""
    return seed if seed == RANDOM_SEED else (seed + choice) & 0xFFFFFFFF


MEDIA_TOKEN = -1
"""Stands in a prompt for each token of an image, or of a piece of audio or video."""


@dataclass(frozen=True, slots=True)
class MediaChunk:
    """The tokens start … start + n_tokens of a prompt: an image, a part of one, or a stretch of audio.

    Of one request: its pixels are let go once the model has read them, and only who it was remains.
    """

    start: int
    n_tokens: int
    n_pos: int  # positions that it takes, not more than tokens
    id: str  # the same for the same bytes
    content: object  # opaque: the engine's, see projector.Content


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt to continue. `n` choices share the prompt; choice i samples with seed + i.

    Where `media` stand, in their order, the tokens are MEDIA_TOKEN.
    """

    tokens: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    n_predict: int = -1  # -1: until the context is full
    stop: tuple[str, ...] = ()
    stream: bool = False  # whether Piece events are wanted
    cache_prompt: bool = True
    n_cache_reuse: int = 0
    id_slot: int = -1
    n_keep: int = 0
    n_discard: int = 0
    n_indent: int = 0
    t_max_predict_ms: float = -1.0
    return_progress: bool = False
    timings_per_token: bool = False
    preserved_tokens: frozenset[int] = frozenset()  # special tokens that are rendered all the same
    adapters: tuple[tuple[int, float], ...] = ()  # (id, scale) of LoRA adapters, others 0; empty: the server's scales
    settings: object = None  # generation_settings as the dialect shows it in /slots; opaque here
    media: tuple[MediaChunk, ...] = ()
    user_starts: tuple[int, ...] = ()  # where messages of users begin among the tokens, if that is known


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text whose vector (or one vector per token, pooling none) or rank score is wanted."""

    tokens: Sequence[int]
    normalize: int = 2  # -1 none, 0 max-abs to 32760, 1 L1, 2 L2, p
    media: tuple[MediaChunk, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    cache_n: int
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int = 0
    draft_n_accepted: int = 0


@dataclass(frozen=True, slots=True)
class TokenProb:
    """`p` is a probability after the samplers, else a natural logarithm of one before them."""

    id: int
    piece: bytes
    p: float


@dataclass(frozen=True, slots=True)
class TokenProbs:
    chosen: TokenProb
    top: tuple[TokenProb, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """The prompt fits and its processing has begun: a stream's 200 may go out."""

    index: int
    n_prompt: int = 0  # its tokens, those included that need not be computed
    n_cached: int = 0  # those


@dataclass(frozen=True, slots=True)
class Progress:
    index: int
    total: int
    cache: int
    processed: int
    time_ms: float
    timings: Timings


class Piece(msgspec.Struct, frozen=True, gc=False):  # one a token: a dataclass takes ten times as long to make
    """A stream's next token, or several that are one character. `text` is empty while a stop string may be coming."""

    index: int
    text: str
    tokens: tuple[int, ...]
    n_decoded: int
    n_prompt: int
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The whole of one choice. Always the last event of its index."""

    index: int
    id_slot: int
    text: str
    tokens: tuple[int, ...]
    stop_type: Literal["none", "eos", "word", "limit"]
    stopping_word: str
    n_decoded: int
    n_prompt: int  # tokens of the prompt, cached ones included
    n_cached: int  # tokens now in the slot's cache
    has_new_line: bool
    truncated: bool
    timings: Timings
    probs: tuple[TokenProbs, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedded:
    """`vectors`: one row per sequence, or one per token with pooling none; floats in the model's width."""

    vectors: Sequence[Sequence[float]]
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ends here with this error; nothing follows, for no index."""

    error: ApiError


Event = Begun | Progress | Piece | Finished | Embedded | Failed
Sink = Callable[[Event], None]
"""Receives the events of one request, in order, on the event loop's thread."""
