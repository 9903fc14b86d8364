"""Texts beyond the context are not tokenized to their end, and the work of a cancelled request stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from llama_corral.common.base.errors import ContextExceeded, InvalidRequest
from llama_corral.worker.api.request import reading
from llama_corral.worker.api.request.reading import LONGEST_PIECE, PIECE, USUAL_PIECE, PromptReader
from llama_corral.worker.engine.messages import PromptText

BOS, EOS = 1, 2


class Words:
    """A vocabulary with one token per blank, which counts the characters that it has read."""

    n_vocab = 1000
    eog_tokens: Sequence[int] = (EOS,)

    def __init__(self) -> None:
        self.n_read = 0

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        self.n_read += len(text)
        tokens = [7] * text.count(" ")
        return self.surrounded(tokens) if add_special else tokens

    def surrounded(self, tokens: Sequence[int]) -> list[int]:
        return [BOS, *tokens, EOS]


def spaced(n_tokens: int, width: int) -> str:
    return (" " + "a" * (width - 1)) * n_tokens


def test_a_text_longer_than_any_context_is_refused_unread() -> None:
    vocab = Words()
    with pytest.raises(ContextExceeded) as caught:
        PromptReader(vocab, 1000).tokenize("a" * (LONGEST_PIECE * 1000 + 1), True, True)
    assert vocab.n_read == 0
    assert caught.value.body()["n_ctx"] == 1000
    assert caught.value.body()["n_prompt_tokens"] >= 1000


def test_a_text_is_read_only_until_the_context_is_full() -> None:
    vocab = Words()
    text = spaced(100_000, 10)
    with pytest.raises(ContextExceeded) as caught:
        PromptReader(vocab, 8000).tokenize(text, True, True)
    assert vocab.n_read <= 8000 * 10 + 2 * PIECE
    assert caught.value.n_prompt_tokens == pytest.approx(100_000, rel=0.01)


@pytest.mark.parametrize("width", [USUAL_PIECE - 1, USUAL_PIECE + 1, 100])
def test_a_text_that_fits_has_the_same_tokens_in_pieces(width: int) -> None:
    text = spaced(7000, width)
    assert PromptReader(Words(), 8000).tokenize(text, True, True) == Words().tokenize(text, True, True)


@pytest.mark.parametrize("n_ctx", [200_000, 10**7])
def test_no_call_of_the_tokenizer_is_long_however_large_the_context(n_ctx: int) -> None:
    class Noting(Words):
        longest = 0

        def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
            self.longest = max(self.longest, len(text))
            return super().tokenize(text, add_special, parse_special)

    vocab = Noting()
    text = spaced(190_000, USUAL_PIECE)
    assert PromptReader(vocab, n_ctx).tokenize(text, True, True) == Words().tokenize(text, True, True)
    assert vocab.longest <= reading.MAX_WHOLE
    PromptReader(vocab, n_ctx).tokenize(text[: reading.MAX_WHOLE], True, True)
    assert vocab.longest == reading.MAX_WHOLE


def test_a_text_that_is_only_tokenized_has_a_limit() -> None:
    vocab = Words()
    with pytest.raises(InvalidRequest, match=f"at most {reading.MAX_TEXT} characters, but this has"):
        PromptReader(vocab).tokenize("a" * (reading.MAX_TEXT + 1), False, False)
    assert vocab.n_read == 0


def test_a_text_is_cut_off_where_that_is_documented() -> None:
    vocab = Words()
    tokens = PromptReader(vocab, 8000, truncates=True).tokenize(spaced(10**6, 10), True, True)
    assert 8000 < len(tokens) < 20_000
    assert (tokens[0], tokens[-1]) == (BOS, EOS)
    assert vocab.n_read < 300_000


def test_the_parts_of_a_prompt_are_limited_together() -> None:
    vocab = Words()
    with pytest.raises(ContextExceeded):
        PromptReader(vocab, 300).tokenize_parts([PromptText("a" * 50_000)] * 9, True)
    assert vocab.n_read == 0


def test_all_texts_of_a_request_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_REQUEST_TOKENS", 1000)
    reader = PromptReader(Words())
    for _ in range(2):
        reader.tokenize(spaced(400, 2), False, False)
    with pytest.raises(InvalidRequest, match="at most 1000 tokens"):
        reader.tokenize(spaced(400, 2), False, False)
    with pytest.raises(InvalidRequest, match="at most 1000 tokens"):
        PromptReader(Words()).tokenize(spaced(10**6, 2), False, False)


def test_a_request_that_needs_more_tokens_may_have_them() -> None:
    reader = PromptReader(Words(), 512, max_tokens=2 * reading.MAX_REQUEST_TOKENS)
    for _ in range(16_000):  # a query with each of many documents
        reader.tokenize(spaced(500, 2), False, False)
    with pytest.raises(InvalidRequest, match=f"at most {2 * reading.MAX_REQUEST_TOKENS} tokens"):
        reader.tokenize(spaced(500, 2), False, False)


async def test_the_work_stops_when_the_client_has_left() -> None:
    started, goes_on, abandoned, vocab = threading.Event(), threading.Event(), threading.Event(), Words()
    reader = PromptReader(vocab)

    def work() -> None:
        started.set()
        goes_on.wait()
        try:
            reader.tokenize("a" * 100 * PIECE, False, False)
        except reading.Abandoned:
            abandoned.set()

    task = asyncio.ensure_future(reader.run(10**6, work))
    await asyncio.to_thread(started.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    goes_on.set()
    assert await asyncio.to_thread(abandoned.wait, 60)
    assert vocab.n_read == 0
