"""Makes DRY samplers from copies: to find the tokens of a sequence breaker takes a tenth of a second in a large
vocabulary, which would delay all requests on the engine thread."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from ..llama.llama import C
from ..llama.vocab import Vocab
from ..messages import Sampling
from . import preparing

MAX_HISTORY = 1 << 20  # tokens; llama.cpp allocates memory for the requested number, and aborts if that fails
_MAX_KEPT = 8

_lock = threading.Lock()
_kept: weakref.WeakKeyDictionary[Vocab, OrderedDict[object, _Original]] = weakref.WeakKeyDictionary()


class _Original:
    """A sampler that is only copied."""

    def __init__(self, sampling: Sampling, vocab: Vocab) -> None:
        self.pointer = _made(sampling, vocab)

    def __del__(self) -> None:
        C.llama_sampler_free(self.pointer)


def uses_dry(s: Sampling) -> bool:
    return s.dry_multiplier != 0.0 and s.dry_penalty_last_n != 0 and "dry" in s.samplers and not s.mirostat


def prepare_dry(sampling: Sampling, vocab: Vocab) -> Future[object]:
    """Make the sampler that those of a request are copied from, on another thread: the request's `dry_prepared`.

    Those that were used last are kept for later requests. The future can be cancelled while others are made.
    """
    known = _known(sampling, vocab)
    return preparing.for_dry(lambda: _original(sampling, vocab)) if known is None else preparing.done(known)


def _known(sampling: Sampling, vocab: Vocab) -> object:
    key = _key(sampling)
    with _lock:
        kept = _kept.setdefault(vocab, OrderedDict())
        if key in kept:
            kept.move_to_end(key)
        return kept.get(key)


def _original(sampling: Sampling, vocab: Vocab) -> object:
    known = _known(sampling, vocab)  # another request may have waited for the same thread
    if known is not None:
        return known
    original = _Original(sampling, vocab)
    with _lock:
        kept = _kept[vocab]
        kept[_key(sampling)] = original
        while len(kept) > _MAX_KEPT:
            kept.popitem(last=False)
    return original


def dry_sampler(sampling: Sampling, vocab: Vocab) -> Any:
    """Return a new sampler. Fast with a prepared one."""
    if isinstance(original := sampling.dry_prepared, _Original):
        return C.llama_sampler_clone(original.pointer)
    return _made(sampling, vocab)


def _key(s: Sampling) -> object:
    return s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_penalty_last_n, s.dry_sequence_breakers


def _made(s: Sampling, vocab: Vocab) -> Any:
    breakers = [text.encode("utf-8", "replace") for text in s.dry_sequence_breakers]
    return C.llama_sampler_init_dry(
        vocab.pointer,
        s.dry_multiplier,
        s.dry_base,
        s.dry_allowed_length,
        min(s.dry_penalty_last_n, MAX_HISTORY),
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )
