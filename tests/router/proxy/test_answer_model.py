"""The model's name in answers of external programs: replaced wherever dialects put it, and nothing else is changed."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.web.application import EVENT_STREAM_TYPE, LINES_TYPE
from llama_corral.router.proxy import answer_model
from llama_corral.router.proxy.answer_model import AnswerRenamer, content_type_of, with_answered_model

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from(["model", "a"]), scalars, max_size=2)
objects = st.dictionaries(st.sampled_from(["id", "model", "choices", "usage"]), values, max_size=4)


@given(objects, st.sampled_from(["", "response", "message"]))
def test_only_the_name_is_replaced(answer: dict[str, Any], inside: str) -> None:
    whole = {"type": "x", inside: answer} if inside else answer
    renamed = json.loads(with_answered_model(json.dumps(whole).encode(), "ours"))
    expected = {**answer, "model": "ours"} if isinstance(answer.get("model"), str) else answer
    assert renamed == ({"type": "x", inside: expected} if inside else expected)


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b'"model"', b'{"model"', b'{"model": 5}', b'{"a": "\xff", "model": "b"']
)
def test_what_has_no_name_is_unchanged(answer: bytes) -> None:
    assert with_answered_model(answer, "ours") == answer


def test_an_answer_that_has_the_name_already_is_unchanged() -> None:
    answer = b'{ "model" : "ours", "n": 1.50 }'
    assert with_answered_model(answer, "ours") == answer


EVENTS = (
    b'event: x\r\ndata: {"model":"theirs","n":1}\r\n\r\n: {"model":"theirs"}\ndata:{"response":{"model":"theirs"}}\n\n'
)
RENAMED = (
    b'event: x\r\ndata: {"model":"ours","n":1}\r\n\r\n: {"model":"theirs"}\ndata: {"response":{"model":"ours"}}\n\n'
)
LINES = b'{"model":"theirs","done":false}\n{"model":"theirs","done":true}'


@given(st.lists(st.integers(0, len(EVENTS)), max_size=6))
def test_the_chunks_of_a_stream_do_not_matter(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(EVENTS)]
    renamer = AnswerRenamer("ours", EVENT_STREAM_TYPE)
    sent = b"".join(renamer.feed(EVENTS[i:j]) for i, j in itertools.pairwise(places))
    assert sent + renamer.end() == RENAMED
    assert AnswerRenamer("ours", EVENT_STREAM_TYPE).whole(EVENTS) == RENAMED, "a short stream arrives as a whole"


def test_json_lines_and_other_types() -> None:
    renamer = AnswerRenamer("ours", LINES_TYPE)
    assert renamer.feed(LINES) + renamer.end() == LINES.replace(b"theirs", b"ours")
    assert AnswerRenamer("ours", LINES_TYPE).whole(LINES) == LINES.replace(b"theirs", b"ours")
    assert AnswerRenamer("ours", "").whole(LINES) == LINES
    assert AnswerRenamer("ours", "application/json").whole(b'{"model":"theirs"}') == b'{"model":"ours"}'
    other = AnswerRenamer("ours", "audio/wav")
    assert other.feed(LINES) + other.end() == LINES


def test_a_line_without_an_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_model, "LONGEST_LINE", 100)
    renamer = AnswerRenamer("ours", EVENT_STREAM_TYPE)
    assert renamer.feed(b"data: " + b"x" * 90) == b""
    assert renamer.feed(b"y" * 90) == b"data: " + b"x" * 90 + b"y" * 90
    assert renamer.feed(b'z\ndata: {"model":"theirs"}\n') == b'z\ndata: {"model":"theirs"}\n'


def test_the_time_for_a_long_line_in_many_pieces_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(pieces: int) -> float:
        renamer = AnswerRenamer("ours", EVENT_STREAM_TYPE)
        started = time.process_time()
        sent = b"".join(renamer.feed(b"x" * 4096) for _ in range(pieces))
        assert (sent, len(renamer.end())) == (b"", pieces * 4096)
        return time.process_time() - started

    monkeypatch.setattr(answer_model, "LONGEST_LINE", 1 << 26)
    assert seconds(8000) < 1, "copying the held text for each piece would copy 128 GiB"


def test_the_type_of_a_compressed_answer_is_unknown() -> None:
    assert content_type_of([(b"Content-Type", b"Application/JSON; charset=utf-8")]) == "application/json"
    assert content_type_of([(b"content-type", b"application/json"), (b"Content-Encoding", b"gzip")]) == ""
    assert content_type_of([]) == ""
