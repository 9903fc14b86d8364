"""One answer in the making: its text, its limits, its clock. Decides after each token whether to go on.

Used by the engine thread; knows the sampler's tokens but no context and no batch.
"""

from __future__ import annotations

from dataclasses import replace

from ..llama.vocab import Vocab
from ..messages import Finished, Generation, Piece, TokenProbs
from .text import Stop, TextStream
from .timing import Clock


class Choice:
    """Choice `index` of a request. `add` takes token after token until `finished`."""

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
        self._probs: list[TokenProbs] = []
        self._unsent_tokens: list[int] = []
        self._unsent_probs: list[TokenProbs] = []

    @property
    def n_remaining(self) -> int:
        return -1 if self._n_predict < 0 else self._n_predict - len(self.tokens)

    def add(self, token: int, probs: TokenProbs | None, vocab: Vocab, context_is_full: bool) -> Piece | None:
        """Takes the token just sampled. Returns what a stream shows."""
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
        """llama-server's order; a later rule that holds names the reason."""
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
        """A line that is indented less than asked for ends the answer and is cut off."""
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
        """The token's text is what is sent with it, as in llama-server, but for one that completes a character."""
        (*before, last) = self._unsent_probs
        piece = text.encode()
        if not before and last.chosen.piece != piece:
            self._unsent_probs[-1] = replace(last, chosen=replace(last.chosen, piece=piece))

    def _piece(self, text: str) -> Piece | None:
        """Tokens and probabilities of an incomplete character wait for the rest of it."""
        request = self.request
        if not request.stream:
            self._probs += self._unsent_probs
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
            return ()  # they went out with the pieces
        n_cut = len(vocab.tokenize(self._stopping_word)) if self._stop == "word" and self._probs else 0
        return tuple(self._probs[: max(0, len(self._probs) - n_cut)])
