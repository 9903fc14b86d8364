"""Matches tokens against grammars with llama.cpp's own matcher: the choice `--grammar-matcher llama.cpp`.

llama.cpp's grammar aborts the process if it has to accept a token that it forbids, so every token is tested first. A
grammar is checked before llama.cpp reads it: its parser and its search for left recursion are recursive, and the latter
may never end. An ambiguous grammar can still take seconds for one token, and nothing can interrupt that.
"""

from __future__ import annotations

import ctypes
import math
import time
from typing import Any

from llama_corral.common.base.errors import InvalidRequest

from ..llama.llama import C, fast
from ..llama.vocab import Vocab
from .guidance import parsed

ROOT = b"root"
NOTICEABLE_SECONDS = 0.001


class _Checked:
    """Says that a grammar was checked."""


def checked(text: str, vocab: Vocab) -> object:
    """Check a grammar, so that LlamaMatcher need not. Raises InvalidRequest."""
    parsed(text, vocab)
    return _Checked()


class LlamaMatcher:
    """The state of one choice's grammar. `close()` frees it."""

    def __init__(self, text: str, vocab: Vocab, prepared: object = None) -> None:
        """`prepared`: the result of `checked`, or None. Raises InvalidRequest if the grammar cannot be parsed."""
        if not isinstance(prepared, _Checked):
            parsed(text, vocab)
        self._pointer: Any = None
        if "\0" not in text:
            self._pointer = C.llama_sampler_init_grammar(vocab.pointer, text.encode("utf-8", "replace"), ROOT)
        if not self._pointer:
            raise InvalidRequest("Failed to initialize samplers: failed to parse grammar")
        self._is_slow = False
        self._one = C.llama_token_data()
        self._only_one = C.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)
        self._reference = ctypes.byref(self._only_one)

    def close(self) -> None:
        C.llama_sampler_free(self._pointer)
        self._pointer = None

    def allows(self, token: int) -> bool:
        self._one.id, self._one.logit = token, 1.0
        self.apply(self._reference)
        return bool(self._one.logit != -math.inf)

    def apply(self, candidates: Any) -> None:
        """Set the logit of every forbidden candidate to minus infinity.

        `candidates` is a reference to a llama_token_data_array.
        """
        C.llama_sampler_apply(self._pointer, candidates)

    def accept(self, token: int) -> None:
        begun = time.monotonic()
        # a long call that keeps the GIL would block the event loop, and so all requests that need no engine
        (C.llama_sampler_accept if self._is_slow else fast.accept)(self._pointer, token)
        self._is_slow = time.monotonic() - begun > NOTICEABLE_SECONDS
