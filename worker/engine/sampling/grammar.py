"""Applies the grammar of one choice: tests tokens, and advances the grammar by the chosen ones.

Used by `sampler` on the engine thread. A matcher decides which tokens fit (`guidance`, `llama_matcher`). It must not be
advanced by a token that does not fit, so every token is tested first, also those that are replayed for a trigger or the
end of the prompt. A lazy grammar is inactive until a trigger occurs in the text; triggers are searched for here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from llama_corral.common.base.errors import InvalidRequest

from ..llama.vocab import Vocab
from ..messages import Grammar, Thinking, Trigger
from .guidance import GuidanceMatcher
from .llama_matcher import LlamaMatcher
from .patterns import Pattern, compiled

SLOW_SECONDS = 0.05
MAX_SLOW_SECONDS = 0.5
"""Processor time for one answer: the sum of all grammar calls that take longer than SLOW_SECONDS.

The engine serves no other request during such a call.
"""

T = TypeVar("T")


class GrammarConstraint:
    """The grammar of one choice and its state. `close()` frees it."""

    def __init__(self, grammar: Grammar, vocab: Vocab) -> None:
        """Parse the grammar and advance it by the tokens of its prefill, the end of the prompt.

        Raises InvalidRequest if the grammar cannot be parsed or forbids the prefill.
        """
        self._vocab = vocab
        self._slow_seconds = 0.0
        self._triggers = _Triggers(grammar, vocab) if grammar.lazy else None
        matcher = LlamaMatcher if grammar.matcher == "llama.cpp" else GuidanceMatcher
        self.matcher = matcher(grammar.text, vocab, grammar.prepared)
        try:
            self._feed_prefill(() if grammar.lazy else prefill_tokens(grammar.prefill, vocab))
        except BaseException:
            self.close()
            raise

    def _feed_prefill(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not self.allows(token):
                piece = self._vocab.piece(token).decode("utf-8", "replace")
                raise refused(f"Unexpected empty grammar stack after accepting piece: {piece} ({token})")
            self._feed(token)

    def close(self) -> None:
        self.matcher.close()

    @property
    def applies(self) -> bool:
        """True if the next token must fit the grammar; False for a lazy grammar before its trigger."""
        return self._triggers is None

    def allows(self, token: int) -> bool:
        return self.timed(lambda: self.matcher.allows(token))

    def timed(self, function: Callable[[], T]) -> T:
        """Call a method of the matcher. Raises InvalidRequest if the calls for this answer take too long."""
        begun = time.thread_time()
        result = function()
        seconds = time.thread_time() - begun
        if seconds > SLOW_SECONDS:
            self._slow_seconds += seconds
            if self._slow_seconds > MAX_SLOW_SECONDS:
                raise InvalidRequest("evaluating the grammar takes too long: it is too ambiguous or too large")
        return result

    def _feed(self, token: int) -> None:
        self.timed(lambda: self.matcher.accept(token))

    def accept(self, token: int) -> None:
        """Advance the grammar by the chosen token. If the grammar `applies`, `allows` must have returned True."""
        if self._triggers is None:
            self._feed(token)
            return
        if self._vocab.is_eog(token):
            return  # it ends the answer and is not part of its text
        replayed = self._triggers.look(token)
        if replayed is None:
            return
        self._triggers = None
        for past in replayed:
            if not self.allows(past):
                raise InvalidRequest("the grammar does not allow the text that triggers it")
            self._feed(past)


def refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"Failed to initialize samplers: {why}")


def prefill_tokens(text: str, vocab: Vocab) -> list[int]:
    """Return the tokens of the prompt's last part, which the grammar describes too."""
    tokens = vocab.tokenize(text, False, True) if text else []
    # some tokenizers insert a space before the first token
    if tokens and vocab.piece(tokens[0])[:1].isspace() and not text[0].isspace():
        del tokens[0]
    return tokens


class _Triggers:
    """Searches an answer's text for the triggers that activate a lazy grammar."""

    def __init__(self, grammar: Grammar, vocab: Vocab) -> None:
        triggers = grammar.triggers
        self._vocab = vocab
        self._tokens = {trigger.token for trigger in triggers if trigger.kind == "token"}
        self._patterns = [(_compiled(trigger), trigger.kind) for trigger in triggers if trigger.kind != "token"]
        self._text = bytearray()
        self._said: list[int] = []
        self._thought = _ThoughtScanner(grammar.thinking) if grammar.thinking else None
        self._from = 0  # where the reasoning has ended

    def look(self, token: int) -> Sequence[int] | None:
        """Add a token to the text. Return the tokens that the grammar must accept if it is now activated, else None."""
        self._text += self._vocab.piece(token)
        self._said.append(token)
        if self._thought is not None:
            end = self._thought.end_in(self._text)
            if end is None:
                return None
            self._thought, self._from = None, end  # the mark that ends the reasoning may be the trigger
        if token in self._tokens:
            return [token]
        for pattern, kind in self._patterns:
            text = bytes(self._text)
            full = pattern.fullmatch(text, self._from) if kind == "pattern_full" else None
            match = full or pattern.search(text, self._from)
            if match:
                groups = (i for i in range(1, (match.lastindex or 0) + 1) if match.end(i) > match.start(i))
                return self._since(match.start(next(groups, 0)))
        return None

    def _since(self, start: int) -> list[int]:
        """Return the tokens after byte `start` of the text; a token that crosses it is replaced by byte tokens."""
        position, tokens = 0, []
        for token in self._said:
            piece = self._vocab.piece(token)
            begin, position = position, position + len(piece)
            if begin >= start:
                tokens.append(token)
            elif position > start:
                tokens += self._spelt(piece[start - begin :])
        return tokens

    def _spelt(self, data: bytes) -> list[int]:
        letters = self._vocab.byte_tokens
        if not all(byte in letters for byte in data):
            raise InvalidRequest("the text that triggers the grammar begins in a token that cannot be split into bytes")
        return [letters[byte] for byte in data]


class _ThoughtScanner:
    """Finds the end of the reasoning that an answer may begin with. The prompt may have opened the reasoning."""

    def __init__(self, thinking: Thinking) -> None:
        start, prompt = thinking.start, thinking.opening
        opened = prompt.rpartition(start)[2] if start and start in prompt else None
        self._closed = opened is not None and any(end in opened for end in thinking.ends)
        self._open = not start or (opened is not None and not self._closed)
        self._start, self._ends = start.encode(), [end.encode() for end in thinking.ends]
        self._longest = max(map(len, self._ends))
        self._seen = 0

    def end_in(self, text: bytearray) -> int | None:
        """Return the byte at which the reasoning ends (the end mark begins), or None if it has not ended yet.

        0 if the answer has no reasoning.
        """
        if self._closed:
            return 0
        if not self._open:
            begun = text.lstrip()
            if not begun.startswith(self._start):
                return None if self._start.startswith(begun) else 0
            self._open = True
        found = [at for end in self._ends if (at := text.find(end, self._seen)) >= 0]
        self._seen = max(0, len(text) - self._longest + 1)
        return min(found, default=None)


def _compiled(trigger: Trigger) -> Pattern:
    if trigger.kind == "word":
        return re.compile(re.escape(trigger.value.encode()))
    text = trigger.value
    if trigger.kind == "pattern_full":
        text = text.removeprefix("^").removesuffix("$")
    try:
        return compiled(text)
    except ValueError as error:
        raise refused(f"the trigger pattern {trigger.value} is not a valid regular expression: {error}") from None
