"""Tokenizes the texts of one request within limits, on another thread if that may take long.

A text that is surely longer than the context is not tokenized to its end, and the work stops when the request is
cancelled because its client left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from llama_corral.common.base.errors import ContextExceeded, InvalidRequest

from ...engine.messages import PromptText
from .limits import MAX_TOKENS
from .samplers import Tokenizer

T = TypeVar("T")

OFF_LOOP_CHARACTERS = 4096
"""Longer texts are processed on another thread: they take over a millisecond, which would block the event loop."""
LONGEST_PIECE = 256
"""Bytes. No text of more than a context of such tokens fits into the context; known vocabularies have shorter ones."""
USUAL_PIECE = 8
"""Bytes. If a text has more for each token of the context, it is tokenized in pieces: it is probably too long."""
PIECE = 64 << 10
"""Characters that are tokenized at a time. This takes at most a quarter of a second."""
MAX_WHOLE = 1 << 20
"""Characters that are tokenized in one call, which nothing can stop: this takes at most a second."""
MAX_TEXT = 16 << 20
"""Characters of a text that is only tokenized."""
MAX_REQUEST_TOKENS = 4 * MAX_TOKENS
"""The largest number of tokens of all texts in a request; together they need 150 MB."""


class Abandoned(Exception):
    """The request was cancelled. Ends the work on another thread; no client gets this error."""


class PromptReader:
    """The vocabulary for one request.

    `n_ctx`: the context in tokens; texts that exceed it are refused, or cut off if `truncates`. None: any length.
    """

    def __init__(
        self, vocab: Tokenizer, n_ctx: int | None = None, *, truncates: bool = False, max_tokens: int | None = None
    ) -> None:
        """`max_tokens`: of all texts together; None: MAX_REQUEST_TOKENS, or the context if that is larger."""
        self._vocab = vocab
        self._max_tokens = max_tokens
        self._n_ctx = n_ctx
        self._truncates = truncates
        self._n_tokens = 0
        self._abandoned = False

    @property
    def n_vocab(self) -> int:
        return self._vocab.n_vocab

    @property
    def eog_tokens(self) -> Sequence[int]:
        return self._vocab.eog_tokens

    async def run(self, n_characters: int, work: Callable[[], T]) -> T:
        """Run short work immediately and long work on another thread, and return its result.

        The work stops at its next use of this object when the request is cancelled.
        """
        if n_characters <= OFF_LOOP_CHARACTERS:
            return work()
        try:
            return await asyncio.to_thread(work)
        except asyncio.CancelledError:
            self._abandoned = True
            raise

    def check_size(self, n_characters: int) -> None:
        """Raise ContextExceeded if a text of this length cannot fit into the context. Call it before other work.

        Raises InvalidRequest for a text of more than MAX_TEXT characters that is not limited by the context.
        """
        if self._n_ctx is None and n_characters > MAX_TEXT:
            raise InvalidRequest(f"a text must have at most {MAX_TEXT} characters, but this has {n_characters}")
        if self._n_ctx is not None and not self._truncates and n_characters > max(PIECE, LONGEST_PIECE * self._n_ctx):
            raise ContextExceeded(n_characters // LONGEST_PIECE, self._n_ctx)

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of a text. Raises ContextExceeded, and InvalidRequest if a request has too many tokens."""
        if self._abandoned:
            raise Abandoned
        self.check_size(len(text))
        if len(text) <= min(max(PIECE, USUAL_PIECE * (self._n_ctx or 0)), MAX_WHOLE):
            tokens = self._vocab.tokenize(text, add_special, parse_special)
        else:
            tokens = self._in_pieces(text, add_special, parse_special)
        self._count(len(tokens))
        return tokens

    def tokenize_parts(self, parts: Sequence[PromptText], add_special: bool) -> list[int]:
        """Return the tokens of a text in parts. Each part is tokenized separately."""
        self.check_size(sum(len(part.text) for part in parts))
        tokens: list[int] = []
        for part in parts:
            tokens += self.tokenize(part.text, False, part.parse_special)
        return self.surrounded(tokens) if add_special else tokens

    def _in_pieces(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Tokenize a text in pieces that end before a blank, so that few of the tokens are others than usual."""
        tokens: list[int] = []
        at = n_pieces = 0
        while at < len(text):
            if self._abandoned:
                raise Abandoned
            end = _end_of_piece(text, at)
            tokens += self._vocab.tokenize(text[at:end], False, parse_special)
            at, n_pieces = end, n_pieces + 1
            if self._n_ctx is not None and len(tokens) > self._n_ctx + n_pieces:
                if self._truncates:
                    break
                raise ContextExceeded(len(tokens) * len(text) // at, self._n_ctx)
            self._count(0, more=len(tokens))
        return self.surrounded(tokens) if add_special else tokens

    def surrounded(self, tokens: Sequence[int]) -> list[int]:
        return self._vocab.surrounded(tokens)

    def _count(self, n: int, more: int = 0) -> None:
        self._n_tokens += n
        limit = self._max_tokens or max(MAX_REQUEST_TOKENS, self._n_ctx or 0)
        if self._n_tokens + more > limit:
            raise InvalidRequest(
                f"the texts of a request must have at most {limit} tokens, but these have at least "
                f"{self._n_tokens + more}"
            )


def _end_of_piece(text: str, at: int) -> int:
    end = at + PIECE
    if end >= len(text):
        return len(text)
    blank = max(text.rfind(" ", end - 256, end), text.rfind("\n", end - 256, end))
    return blank if blank > at else end
