"""Samples tokens: builds a llama.cpp sampler chain for each choice, in llama-server's order.

The same parameters, seed, prompt and logits give the same tokens as llama-server. Used by the engine thread only.
Conditions in which llama.cpp would abort the process are avoided: a chain always ends with a sampler that selects a
token, and a grammar accepts a token only after it has been tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
from llama_corral.common.base.errors import InvalidRequest, ServerFault
from numpy.typing import NDArray

from ..llama.context import Context
from ..llama.llama import C, fast
from ..llama.vocab import Vocab
from ..messages import Sampling, Thinking
from .candidates import SMALL_VOCAB, TokenCandidates
from .dry import MAX_HISTORY, dry_sampler
from .grammar import GrammarConstraint, prefill_tokens
from .grammar_candidates import GrammarPrefilter, prunable
from .guidance import GuidanceMatcher
from .thinking_budget import ThinkingBudget

_MIROSTAT_M = 100  # candidates from which mirostat 1 estimates the distribution's shape; llama-server's constant

Logits = NDArray[np.float32]

_Build = Callable[[Sampling, Vocab], Any]


_SAMPLERS: dict[str, _Build] = {
    "dry": dry_sampler,
    "top_k": lambda s, _: C.llama_sampler_init_top_k(s.top_k),
    "top_p": lambda s, _: C.llama_sampler_init_top_p(s.top_p, s.min_keep),
    "top_n_sigma": lambda s, _: C.llama_sampler_init_top_n_sigma(s.top_n_sigma),
    "min_p": lambda s, _: C.llama_sampler_init_min_p(s.min_p, s.min_keep),
    "xtc": lambda s, _: C.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, s.seed),
    "typ_p": lambda s, _: C.llama_sampler_init_typical(s.typical_p, s.min_keep),
    "temperature": lambda s, _: C.llama_sampler_init_temp_ext(s.temperature, s.dynatemp_range, s.dynatemp_exponent),
    "infill": lambda _, vocab: C.llama_sampler_init_infill(vocab.pointer),
    "penalties": lambda s, vocab: C.llama_sampler_init_penalties(
        vocab.n_vocab, min(s.repeat_last_n, MAX_HISTORY), s.repeat_penalty, s.frequency_penalty, s.presence_penalty
    ),
}
_ADAPTIVE_P = "adaptive_p"  # selects the token, so it is always the last sampler, wherever the request lists it
SAMPLER_NAMES = frozenset({*_SAMPLERS, _ADAPTIVE_P})


class Sampler:
    """The sampler chain, grammar and random numbers of one choice. `close()` frees them."""

    def __init__(self, sampling: Sampling, vocab: Vocab) -> None:
        """Build the chain. Raises InvalidRequest for parameters that no sampler accepts."""
        _check(sampling)
        self._history = max(sampling.repeat_last_n, sampling.dry_penalty_last_n, 0)
        self._constraint = GrammarConstraint(sampling.grammar, vocab) if sampling.grammar else None
        self._budget = _budget(sampling.thinking, vocab) if sampling.thinking else None
        self._chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        for sampler in _chain(sampling, vocab):
            C.llama_sampler_chain_add(self._chain, sampler)
        self._n_vocab = vocab.n_vocab
        self._top_k = _decisive_top_k(sampling, vocab) if sampling.grammar and vocab.n_vocab > SMALL_VOCAB else 0
        self._prefilter = self._make_prefilter(sampling, vocab)
        self._keep_candidates = sampling.post_sampling_probs and sampling.wants_probs
        self._depends_on_history = _depends_on_history(sampling)

    def _make_prefilter(self, sampling: Sampling, vocab: Vocab) -> GrammarPrefilter | None:
        if not self._constraint or not sampling.grammar or vocab.n_vocab <= SMALL_VOCAB:
            return None
        if sampling.grammar.matcher != "llama.cpp" or not prunable(sampling.grammar.text):
            return None
        return GrammarPrefilter(self._constraint, vocab, self._top_k)

    def close(self) -> None:
        C.llama_sampler_free(self._chain)
        if self._constraint:
            self._constraint.close()
        self._chain = self._constraint = None

    def prime(self, prompt: list[int]) -> None:
        """Add the prompt's last tokens to the history of penalties and DRY. The grammar begins after the prompt."""
        for token in prompt[-self._history :] if self._history else ():
            fast.accept(self._chain, token)

    def sample(self, context: Context, row: int) -> int:
        """Sample the next token from the logits of `row`, accept and return it."""
        constraint = self._constraint
        forced = self._forced()
        if forced is not None:
            token = self._accept_instead(forced, context, row)
        elif constraint is None or not constraint.applies:
            token = self._choose_accepted(context, row)
        else:
            token = self._choose_allowed(constraint, context, row)
        if constraint is not None:
            constraint.accept(token)
        if self._budget is not None:
            self._budget.accept(token)
        return token

    def end_thoughts(self) -> None:
        if self._budget is not None:
            self._budget.end_thoughts()

    def _forced(self) -> int | None:
        """Return the token that the thinking budget forces, or None. A grammar that forbids it has priority."""
        forced = self._budget.forced if self._budget else None
        constraint = self._constraint
        if forced is None or constraint is None or not constraint.applies or constraint.allows(forced):
            return forced
        assert self._budget is not None
        self._budget.stop_forcing()
        return None

    def force_token(self, context: Context, row: int, token: int) -> int:
        """Accept `token` regardless of the logits, after sampling once. For benchmarks: the grammar is not advanced."""
        self._choose(context, row)
        return self._accepted(token)

    def _accept_instead(self, token: int, context: Context, row: int) -> int:
        """Run the chain with this token as the only candidate, so that its random generators advance as usual."""
        only = np.full_like(logits := context.logits(row), -np.inf)
        only[token] = logits[token]
        self._candidates.fill(only)
        self._candidates.choose(self._chain)
        return self._accepted(token)

    def candidates(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Return rows of (id, logit, p) after the samplers, most likely first.

        Only valid if probabilities after sampling were requested.
        """
        return self._candidates.by_probability()

    @cached_property
    def _candidates(self) -> TokenCandidates:
        return TokenCandidates(self._n_vocab)

    def _choose_accepted(self, context: Context, row: int) -> int:
        if self._keep_candidates:
            return self._accepted(self._choose(context, row))
        # check first: llama.cpp aborts on a row without logits
        if not fast.logits_ith(context.pointer, row):
            raise ServerFault(f"no logits in row {row}")
        return int(C.llama_sampler_sample(self._chain, context.pointer, row))

    def _choose_allowed(self, constraint: GrammarConstraint, context: Context, row: int) -> int:
        """Sample freely first, and with the grammar only if the result is forbidden: testing all tokens is slow."""
        if self._depends_on_history or self._keep_candidates:
            token = self._choose(context, row)
            if constraint.allows(token):
                return self._accepted(token)
        else:
            token = self._choose_accepted(context, row)
            if constraint.allows(token):
                return token
        self._forbid(constraint, context.logits(row))
        token = self._candidates.choose(self._chain)
        if not constraint.allows(token):
            raise InvalidRequest("the grammar allows none of the tokens that the other samplers keep")
        return self._accepted(token)

    def _choose(self, context: Context, row: int) -> int:
        self._candidates.fill(context.logits(row))
        return self._candidates.choose(self._chain)

    def _accepted(self, token: int) -> int:
        fast.accept(self._chain, token)
        return token

    def _forbid(self, constraint: GrammarConstraint, logits: Logits) -> None:
        """Fill the candidates so that only tokens that the grammar allows can be sampled."""
        matcher, candidates = constraint.matcher, self._candidates
        if isinstance(matcher, GuidanceMatcher):
            likeliest = constraint.timed(lambda: matcher.likeliest(logits, self._top_k))
            if likeliest is not None:
                candidates.fill_some(likeliest, logits)
                return
            candidates.fill(np.where(constraint.timed(matcher.mask), logits, np.float32(-np.inf)))
            return
        if self._prefilter is None:
            candidates.fill(logits)
            constraint.timed(lambda: matcher.apply(candidates.reference))
            return
        allowed = self._prefilter.allowed(logits)
        if self._prefilter.is_partial:
            self._candidates.fill_some(allowed, logits)
        else:
            only = np.full_like(logits, -np.inf)
            only[allowed] = logits[allowed]
            self._candidates.fill(only)


def _budget(thinking: Thinking, vocab: Vocab) -> ThinkingBudget:
    message = vocab.tokenize(thinking.message, False, True) if thinking.message else []
    forced = message + vocab.tokenize(thinking.ends[0], False, True)
    return ThinkingBudget(thinking, vocab.piece, forced, prefill_tokens(thinking.opening, vocab))


def _check(s: Sampling) -> None:
    problem = None
    if (
        not math.isfinite(s.repeat_penalty)
        or s.repeat_penalty <= 0
        or not math.isfinite(_inverse_f32(s.repeat_penalty))
    ):
        problem = "penalty_repeat must be finite and greater than 0"
    elif not math.isfinite(s.frequency_penalty):
        problem = "penalty_freq must be finite"
    elif not math.isfinite(s.presence_penalty):
        problem = "penalty_present must be finite"
    elif unknown := [name for name in s.samplers if name not in SAMPLER_NAMES]:
        problem = f"unknown sampler {unknown[0]!r}"
    if problem:
        raise InvalidRequest(f"Failed to initialize samplers: {problem}")


def _inverse_f32(value: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float32(1.0) / np.float32(value))


def _depends_on_history(s: Sampling) -> bool:
    """Return True if a sampler's state depends on accepted tokens, so that it must not accept a forbidden one."""
    return not _no_penalties(s) or _ADAPTIVE_P in s.samplers


def _no_penalties(s: Sampling) -> bool:
    neutral = (s.repeat_penalty, s.presence_penalty, s.frequency_penalty) == (1.0, 0.0, 0.0)
    return (neutral or "penalties" not in s.samplers) and (s.dry_multiplier == 0.0 or "dry" not in s.samplers)


def _decisive_top_k(s: Sampling, vocab: Vocab) -> int:
    """Return n if the chain uses only the n most likely tokens, or 0 if it may use more."""
    if s.mirostat or _biases(s, vocab) or not _no_penalties(s):
        return 0
    idle = {"penalties", "dry", *(["top_n_sigma"] if s.top_n_sigma <= 0 else [])}
    first = next((name for name in s.samplers if name not in idle), "")
    return max(s.top_k, 0) if first == "top_k" else 0


def _chain(s: Sampling, vocab: Vocab) -> Iterable[Any]:
    biases = _biases(s, vocab)
    if biases:
        array = (C.llama_logit_bias * len(biases))(*biases)
        yield C.llama_sampler_init_logit_bias(vocab.n_vocab, len(biases), array)
    if s.mirostat == 1:
        yield C.llama_sampler_init_temp(s.temperature)
        yield C.llama_sampler_init_mirostat(vocab.n_vocab, s.seed, s.mirostat_tau, s.mirostat_eta, _MIROSTAT_M)
    elif s.mirostat == 2:
        yield C.llama_sampler_init_temp(s.temperature)
        yield C.llama_sampler_init_mirostat_v2(s.seed, s.mirostat_tau, s.mirostat_eta)
    else:
        for name in s.samplers:
            if name != _ADAPTIVE_P:
                yield _SAMPLERS[name](s, vocab)
        if _ADAPTIVE_P in s.samplers:
            yield C.llama_sampler_init_adaptive_p(s.adaptive_target, s.adaptive_decay, s.seed)
        else:
            yield C.llama_sampler_init_dist(s.seed)


def _biases(s: Sampling, vocab: Vocab) -> list[tuple[int, float]]:
    biases = [(token, bias) for token, bias in s.logit_bias if 0 <= token < vocab.n_vocab]
    forbidden = (*(vocab.eog_tokens if s.ignore_eos else ()), *vocab.suppressed_tokens)
    return biases + [(token, -math.inf) for token in forbidden]
