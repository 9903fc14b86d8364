"""Builds a choice's text from tokens: emits whole characters only and never a stop string. Pure, without llama.cpp.

The rules are llama-server's. They work on bytes, because a token may end inside a character.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..llama.utf8 import incomplete_tail

Stop = Literal["none", "eos", "word", "limit"]


class TextDelta(NamedTuple):
    """The text that one token adds. `whole` is False while a character is incomplete; then the text is empty."""

    text: str
    whole: bool
    stop_word: str | None = None


class TextStream:
    """The text of one choice."""

    __slots__ = ("_n_sent", "_stops", "data")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = [(word, word.encode()) for word in stops if word]
        self.data = bytearray()
        self._n_sent = 0

    @property
    def text(self) -> str:
        """The whole characters; invalid UTF-8 among them is replaced."""
        return self.data[: self._n_whole].decode("utf-8", "replace")

    @property
    def broken(self) -> str:
        """The replacement for an incomplete character at the end; empty if there is none."""
        return self.data[self._n_whole :].decode("utf-8", "replace")

    @property
    def _n_whole(self) -> int:
        return len(self.data) - incomplete_tail(self.data)

    def add(self, piece: bytes, is_end: bool) -> TextDelta:
        """Add a token's bytes and return the text to show.

        `is_end`: the token ends the generation, so no text is held back for a possible stop string.
        """
        data = self.data
        data += piece
        if data and data[-1] >= 0x80 and incomplete_tail(data):
            return TextDelta("", False)
        if not self._stops:
            return TextDelta(self._send(len(data)), True)
        unsent = bytes(data[self._n_sent :])
        found = self._first_stop(unsent)
        if found is not None:
            position, word = found
            del data[self._n_sent + position :]
            return TextDelta(self._send(len(data)), True, word)
        if not is_end and any(partial_stop(unsent, word) for _, word in self._stops):
            return TextDelta("", True)  # the text before the partial match is held back too
        return TextDelta(self._send(len(data)), True)

    def truncate(self, n_bytes: int) -> None:
        """Remove all but the first n bytes."""
        del self.data[n_bytes:]

    def rest(self) -> str:
        """Return the held back text at the end of the answer, without an incomplete character."""
        return self._send(self._n_whole)

    def _send(self, end: int) -> str:
        begin, self._n_sent = self._n_sent, max(end, self._n_sent)
        return self.data[begin:end].decode("utf-8", "replace")

    def _first_stop(self, unsent: bytes) -> tuple[int, str] | None:
        best: tuple[int, str] | None = None
        for word, data in self._stops:
            position = unsent.find(data)
            if position >= 0 and (best is None or position < best[0]):
                best = position, word
        return best


def partial_stop(text: bytes, word: bytes) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of the stop string; 0: none."""
    for n in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:n]):
            return n
    return 0
