"""The messages between the HTTP side and the engine thread: requests and events, as frozen data classes.

Text is `str`, tokens are ids of the model's vocabulary, times are milliseconds, positions count tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from llama_corral.common.base.errors import ApiError
from llama_corral.presets.options.sampling import DEFAULT_SAMPLERS, RANDOM_SEED
from msgspec import Struct, field

TriggerKind = Literal["token", "word", "pattern", "pattern_full"]
GrammarMatcher = Literal["llguidance", "llama.cpp"]


class Trigger(Struct, frozen=True):
    """Activates a lazy grammar: a token, a word, or a regular expression that is found in the text or matches all."""

    kind: TriggerKind
    value: str
    token: int = -1


class Thinking(Struct, frozen=True):
    """The tags that delimit reasoning in an answer's text, and the maximum number of reasoning tokens."""

    start: str  # empty: the answer begins with reasoning
    ends: tuple[str, ...]  # when the budget is spent, `message` and the first of these are inserted
    opening: str = ""  # the end of the prompt, which may contain the start tag
    budget: int = -1  # -1: no limit
    message: str = ""
    control: bool = False  # True if the reasoning may be ended by a request from outside


class Grammar(Struct, frozen=True):
    """A GBNF grammar that constrains an answer. A lazy grammar applies from its trigger on."""

    text: str
    lazy: bool = False
    triggers: tuple[Trigger, ...] = ()
    prefill: str = ""  # the last part of the prompt, if the grammar describes it too
    thinking: Thinking | None = None  # how reasoning is recognized: a trigger inside it does not start a lazy grammar
    matcher: GrammarMatcher = "llguidance"
    prepared: object = None  # what was made of the text before the request was submitted; not read here


class Sampling(Struct, frozen=True):
    """The sampling parameters. Defaults are llama-server's; names are those of `generation_settings`."""

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
    chosen_probs: bool = False  # probabilities of the sampled tokens are wanted even if `n_probs` is 0
    post_sampling_probs: bool = False
    grammar: Grammar | None = None
    grammar_matcher: GrammarMatcher = "llguidance"  # of the grammars of requests
    dry_prepared: object = None  # the DRY sampler that those of the choices are copied from; not read here
    thinking: Thinking | None = None
    backend_sampling: bool = False

    @property
    def wants_probs(self) -> bool:
        return self.n_probs > 0 or self.chosen_probs


def seed_of(seed: int, choice: int) -> int:
    """Return the seed of one choice: `seed + choice`, or RANDOM_SEED if the request uses a random seed."""
    return seed if seed == RANDOM_SEED else (seed + choice) & 0xFFFFFFFF


class PromptText(Struct, frozen=True):
    """A part of a prompt's text. Without `parse_special` the spelling of a special token in it is ordinary text."""

    text: str
    parse_special: bool = True


class SpecialSpelling(Struct, frozen=True):
    """The text of a token that the tokenizer finds before it tokenizes the text around it."""

    text: str
    strips_left: bool = False  # blanks before it are removed
    strips_right: bool = False
    always: bool = False  # also found without `parse_special`


MEDIA_TOKEN = -1
"""Placeholder in a prompt for each token of an image, or of a piece of audio or video."""


class MediaChunk(Struct, frozen=True):
    """The tokens start … start + n_tokens of a prompt: an image, a part of one, or a section of audio.

    Valid for one request only: the pixels are freed once the model has read them; only the identity is kept.
    """

    start: int
    n_tokens: int
    n_pos: int  # number of positions used, at most n_tokens
    id: str  # equal for equal bytes
    content: object  # not read here: a MediaContent of the engine


class Generation(Struct, frozen=True):
    """A prompt to continue. `n` choices share the prompt; choice i samples with seed + i.

    At the places of `media`, which are in order, the tokens are MEDIA_TOKEN.
    """

    tokens: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    n_predict: int = -1  # -1: until the context is full
    stop: tuple[str, ...] = ()
    stream: bool = False  # True if Piece events are requested
    cache_prompt: bool = True
    n_cache_reuse: int = 0
    id_slot: int = -1
    n_keep: int = 0
    n_discard: int = 0
    n_indent: int = 0
    t_max_predict_ms: float = -1.0
    return_progress: bool = False
    timings_per_token: bool = False
    preserved_tokens: frozenset[int] = frozenset()  # special tokens that are rendered nevertheless
    adapters: tuple[tuple[int, float], ...] = ()  # (id, scale) of LoRA adapters, others 0; empty: the server's scales
    settings: object = None  # generation_settings as the dialect shows it in /slots; not read here
    media: tuple[MediaChunk, ...] = ()
    user_starts: tuple[int, ...] = ()  # indexes of the tokens at which user messages begin, if known


class Embedding(Struct, frozen=True):
    """A request for the vector of a text (with pooling none: one vector per token) or for its rank score."""

    tokens: Sequence[int]
    normalize: int = 2  # -1: none, 0: the largest absolute value becomes 32760, 1: L1, 2: L2, p: p-norm
    media: tuple[MediaChunk, ...] = ()
    dimensions: int | None = None  # keep only the first values of each vector, then normalise; not for rank scores


class Timings(Struct, frozen=True):
    cache_n: int
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int = 0
    draft_n_accepted: int = 0


class TokenProb(Struct, frozen=True):
    """A token and its probability. `p`: its probability after sampling, or the natural log of that before sampling."""

    id: int
    piece: bytes
    p: float


class TokenProbs(Struct, frozen=True):
    chosen: TokenProb
    top: tuple[TokenProb, ...]


class Begun(Struct, frozen=True):
    """The prompt fits and its processing has begun: the response of a stream may start with status 200."""

    index: int
    n_prompt: int = 0  # tokens of the prompt, cached ones included
    n_cached: int = 0  # cached tokens, which need not be computed


class Progress(Struct, frozen=True):
    index: int
    total: int
    cache: int
    processed: int
    time_ms: float
    timings: Timings


class Piece(Struct, frozen=True, gc=False):
    """The next token of a stream, or several that form one character.

    `text` is empty while its end may be the beginning of a stop string. The garbage collector does not track pieces
    (`gc=False`), because each token makes one; they refer to nothing that could refer back to them.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    n_decoded: int
    n_prompt: int
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


class Finished(Struct, frozen=True):
    """The complete result of one choice. Always the last event of its index."""

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
    broken: str = ""  # U+FFFD if the tokens end inside a character; not in `text`


class Embedded(Struct, frozen=True):
    """`vectors`: one row per sequence, or one per token with pooling none; each row has the model's output width."""

    vectors: Sequence[Sequence[float]]
    n_tokens: int


class Failed(Struct, frozen=True):
    """The request failed with this error. No further event follows for any index."""

    error: ApiError


class Share(Struct, frozen=True):
    """The client and the HTTP request that a prompt is computed for.

    Slots are shared fairly between clients, and between a client's requests.
    """

    client: str = ""  # stands for an API key; equal for all clients of a server without keys
    request: int = -1  # equal for all prompts of an HTTP request


Event = Begun | Progress | Piece | Finished | Embedded | Failed
Sink = Callable[[Event], None]
"""Function that receives the events of one request, in order, on the event loop's thread."""
