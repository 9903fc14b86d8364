"""The state of one answer during generation: its text, limits and clock. Decides after each token whether to continue.

Used by the engine thread. It gets sampled tokens and does not use the context or the batch.
"""

from __future__ import annotations

from llama_corral.common.base.errors import InvalidRequest
from msgspec.structs import replace

from ..llama.vocab import Vocab
from ..messages import Finished, Generation, Piece, TokenProbs
from .text import Stop, TextStream
from .timing import Clock

MAX_KEPT_PROBS = 500_000
"""The largest number of probabilities of an answer that is not streamed; as JSON they need 400 MB."""


class Choice:
    """Choice `index` of a request. `add` is called with each token until `finished`."""

    def __init__(self, request: Generation, index: int, n_predict: int, special: bool) -> None:
        """`n_predict` is the limit in force, -1 for none; `special`: render special tokens."""
        self.request = request
        self.index = index
        self.clock = Clock()
        self.tokens: list[int] = []
        self.finished = False
        self.has_new_line = False
        self.truncated = False
        self._n_predict = n_predict
        self._special = special
        self._text = TextStream(request.stop)
        self._stop: Stop = "none"
        self._stopping_word = ""
        self._line_start = 0
        self._n_kept = 0
        """The number of probabilities in `_probs`."""
        self._probs: list[TokenProbs] = []
        self._unsent_tokens: list[int] = []
        self._unsent_probs: list[TokenProbs] = []

    @property
    def n_remaining(self) -> int:
        return -1 if self._n_predict < 0 else self._n_predict - len(self.tokens)

    def add(self, token: int, probs: TokenProbs | None, vocab: Vocab, context_is_full: bool) -> Piece | None:
        """Add the sampled token. Return the piece to stream, if there is one.

        Raises InvalidRequest if the answer must keep too many probabilities.
        """
        self.tokens.append(token)
        self._unsent_tokens.append(token)
        if probs is not None:
            self._unsent_probs.append(probs)
        is_end = vocab.is_eog(token)
        rendered = self._special or token in self.request.preserved_tokens
        shown = self._text.add(vocab.piece(token) if rendered else vocab.plain_piece(token), is_end)
        text = shown.text
        if shown.stop_word is not None:
            self._end("word")
            self._stopping_word = shown.stop_word
        if probs is not None and shown.whole:
            self._show_as(text)
        self._check_limits(text, context_is_full)
        if is_end:
            self._end("eos")
        if self.finished and self._stop != "word":
            text += self._text.rest()
        return self._piece(text) if shown.whole or self.finished else None

    def finish(self, id_slot: int, n_in_slot: int, vocab: Vocab) -> Finished:
        return Finished(
            index=self.index,
            id_slot=id_slot,
            text=self._text.text,
            broken=self._text.broken,
            tokens=tuple(self.tokens),
            stop_type=self._stop,
            stopping_word=self._stopping_word,
            n_decoded=len(self.tokens),
            n_prompt=len(self.request.tokens),
            n_cached=n_in_slot,
            has_new_line=self.has_new_line,
            truncated=self.truncated,
            timings=self.clock.timings(),
            probs=self._final_probs(vocab),
        )

    def _end(self, why: Stop) -> None:
        self._stop = why
        self.finished = True

    def _check_limits(self, text: str, context_is_full: bool) -> None:
        """Check the limits in llama-server's order.

        Each limit except the number of tokens replaces an earlier stop reason, such as a stop word.
        """
        if context_is_full:
            self.truncated = True
            self._end("limit")
        if not self.finished and 0 <= self._n_predict <= len(self.tokens):
            self._end("limit")
        if self.has_new_line and self.request.n_indent > 0:
            self._check_indentation()
        if "\n" in text:
            self.has_new_line = True
            limit = self.request.t_max_predict_ms
            if limit > 0 and 1e3 * self.clock.predicted_seconds > limit:
                self._end("limit")

    def _check_indentation(self) -> None:
        """End the answer at a line that is indented less than `n_indent`, and cut this line off."""
        data = self._text.data
        if self._line_start > 0:
            first = self._line_start
            while first < len(data) and data[first] in b" \t":
                first += 1
            if first < len(data) and first - self._line_start < self.request.n_indent:
                self._text.truncate(first)
                self._end("limit")
        new_line = data.find(b"\n", self._line_start)
        if new_line >= 0:
            self._line_start = new_line + 1

    def _show_as(self, text: str) -> None:
        """Report the sent text as the token's piece, as llama-server does, except if it completes a character."""
        (*before, last) = self._unsent_probs
        piece = text.encode()
        if not before and last.chosen.piece != piece:
            self._unsent_probs[-1] = replace(last, chosen=replace(last.chosen, piece=piece))

    def _piece(self, text: str) -> Piece | None:
        """Return the piece to stream, with the tokens and probabilities since the last one; None without a stream."""
        request = self.request
        if not request.stream:
            self._probs += self._unsent_probs
            self._n_kept += sum(1 + len(probs.top) for probs in self._unsent_probs)
            if self._n_kept > MAX_KEPT_PROBS:
                raise InvalidRequest(
                    f"the answer has more than {MAX_KEPT_PROBS} probabilities ({len(self._probs)} tokens, n_probs "
                    f"{request.sampling.n_probs}): stream it, or set a smaller n_probs or n_predict"
                )
            self._unsent_probs.clear()
            return None
        tokens, probs = tuple(self._unsent_tokens), tuple(self._unsent_probs)
        self._unsent_tokens.clear()
        self._unsent_probs.clear()
        return Piece(
            index=self.index,
            text=text,
            tokens=tokens,
            n_decoded=len(self.tokens),
            n_prompt=len(request.tokens),
            probs=probs,
            timings=self.clock.timings() if request.timings_per_token or self._stop == "word" else None,
        )

    def _final_probs(self, vocab: Vocab) -> tuple[TokenProbs, ...]:
        if self.request.stream:
            return ()  # they were sent with the pieces
        n_cut = len(vocab.tokenize(self._stopping_word)) if self._stop == "word" and self._probs else 0
        return tuple(self._probs[: max(0, len(self._probs) - n_cut)])
