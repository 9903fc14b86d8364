"""How one token is chosen: a llama.cpp sampler chain for each request, built in llama-server's order.

The same parameters, seed, prompt and logits give the same tokens as llama-server. Used by the engine thread only.
What would abort the process cannot happen here: a chain always ends in a choosing sampler, and a grammar is told of a
token only after it has been asked about it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ...presets.errors import InvalidRequest, ServerFault
from .context import Context
from .llama import C, fast
from .messages import Sampling
from .vocab import Vocab

RANDOM_SEED = 0xFFFFFFFF
_LONGEST_HISTORY = 1 << 20  # tokens; llama.cpp allocates what is asked for, and aborts when that fails
_MIROSTAT_M = 100  # candidates from which mirostat 1 estimates the distribution's shape; llama-server's constant

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

_Build = Callable[[Sampling, Vocab], Any]


def _dry(s: Sampling, vocab: Vocab) -> Any:
    breakers = [text.encode() for text in s.dry_sequence_breakers]
    return C.llama_sampler_init_dry(
        vocab.pointer,
        s.dry_multiplier,
        s.dry_base,
        s.dry_allowed_length,
        min(s.dry_penalty_last_n, _LONGEST_HISTORY),
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )


_SAMPLERS: dict[str, _Build] = {
    "dry": _dry,
    "top_k": lambda s, _: C.llama_sampler_init_top_k(s.top_k),
    "top_p": lambda s, _: C.llama_sampler_init_top_p(s.top_p, s.min_keep),
    "top_n_sigma": lambda s, _: C.llama_sampler_init_top_n_sigma(s.top_n_sigma),
    "min_p": lambda s, _: C.llama_sampler_init_min_p(s.min_p, s.min_keep),
    "xtc": lambda s, _: C.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, s.seed),
    "typ_p": lambda s, _: C.llama_sampler_init_typical(s.typical_p, s.min_keep),
    "temperature": lambda s, _: C.llama_sampler_init_temp_ext(s.temperature, s.dynatemp_range, s.dynatemp_exponent),
    "infill": lambda _, vocab: C.llama_sampler_init_infill(vocab.pointer),
    "penalties": lambda s, vocab: C.llama_sampler_init_penalties(
        vocab.n_vocab, min(s.repeat_last_n, _LONGEST_HISTORY), s.repeat_penalty, s.frequency_penalty, s.presence_penalty
    ),
}
_ADAPTIVE_P = "adaptive_p"  # chooses the token itself, therefore stands last wherever it is named
SAMPLER_NAMES = frozenset({*_SAMPLERS, _ADAPTIVE_P})


class Sampler:
    """One choice's chain, grammar and random numbers. `close()` frees them."""

    def __init__(self, sampling: Sampling, vocab: Vocab) -> None:
        """Raises InvalidRequest for parameters no sampler takes."""
        _check(sampling)
        self._vocab = vocab
        self._history = max(sampling.repeat_last_n, sampling.dry_penalty_last_n, 0)
        self._grammar = _grammar(sampling.grammar, vocab)
        self._chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        for sampler in _chain(sampling, vocab):
            C.llama_sampler_chain_add(self._chain, sampler)
        self._keep_candidates = sampling.post_sampling_probs and sampling.n_probs > 0
        self._candidates = _Candidates(vocab.n_vocab) if self._grammar or self._keep_candidates else None

    def close(self) -> None:
        C.llama_sampler_free(self._chain)
        if self._grammar:
            C.llama_sampler_free(self._grammar)
        self._chain = self._grammar = None

    def prime(self, prompt: list[int]) -> None:
        """Tells penalties and DRY of the prompt; what they forget anyway is left out."""
        for token in prompt[-self._history :] if self._history else ():
            fast.accept(self._chain, token)

    def sample(self, context: Context, row: int) -> int:
        """The next token from the logits of `row`, accepted."""
        if self._candidates is None:
            # looked up first: llama.cpp aborts on a row without logits
            if not fast.logits_ith(context.pointer, row):
                raise ServerFault(f"no logits in row {row}")
            return int(C.llama_sampler_sample(self._chain, context.pointer, row))
        return self._sample_candidates(self._candidates, context, row)

    def candidates(self) -> np.ndarray[Any, np.dtype[Any]]:
        """(id, logit, p) after the samplers, likeliest first. Only if probabilities after sampling were asked for."""
        assert self._candidates is not None
        return self._candidates.by_probability()

    def _sample_candidates(self, candidates: _Candidates, context: Context, row: int) -> int:
        candidates.fill(context.logits(row))
        token = candidates.choose(self._chain)
        if self._grammar and not self._allows(token):
            # only now is the grammar asked about every token: that is slow, and the first choice often fits
            candidates.fill(context.logits(row))
            C.llama_sampler_apply(self._grammar, candidates.reference)
            token = candidates.choose(self._chain)
            if not self._allows(token):
                raise ServerFault("the grammar allows none of the tokens that the other parameters leave")
        if self._grammar:
            C.llama_sampler_accept(self._grammar, token)
        fast.accept(self._chain, token)
        return token

    def _allows(self, token: int) -> bool:
        data = C.llama_token_data(token, 1.0, 0.0)
        array = C.llama_token_data_array(ctypes.pointer(data), 1, -1, False)
        C.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(data.logit != -math.inf)


class _Candidates:
    """The vocabulary as llama.cpp's samplers take it."""

    def __init__(self, n_vocab: int) -> None:
        self._data = np.zeros(n_vocab, _CANDIDATE)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._array = C.llama_token_data_array()
        self.reference = ctypes.byref(self._array)

    def fill(self, logits: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._data["id"] = self._ids
        self._data["logit"] = logits
        self._data["p"] = 0.0
        self._array.data = ctypes.cast(self._data.ctypes.data, C.llama_token_data_p)
        self._array.size = len(self._data)
        self._array.selected = -1
        self._array.sorted = False

    def choose(self, chain: Any) -> int:
        C.llama_sampler_apply(chain, self.reference)
        if not 0 <= self._array.selected < self._array.size:
            raise ServerFault("the samplers chose no token")
        return int(self._array.data[self._array.selected].id)

    def by_probability(self) -> np.ndarray[Any, np.dtype[Any]]:
        address = ctypes.cast(self._array.data, ctypes.c_void_p).value
        buffer = (ctypes.c_char * (_CANDIDATE.itemsize * self._array.size)).from_address(address)
        rows = np.frombuffer(buffer, _CANDIDATE)
        return rows[np.argsort(-rows["p"], kind="stable")]


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


def _grammar(text: str, vocab: Vocab) -> Any:
    if not text:
        return None
    grammar = None if "\0" in text else C.llama_sampler_init_grammar(vocab.pointer, text.encode(), b"root")
    if not grammar:
        raise InvalidRequest("Failed to initialize samplers: failed to parse grammar")
    return grammar


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
