"""Results in each dialect: their fields, the order of events, and which fields are omitted."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from llama_corral.worker.api.answers.dialect import AnswerInfo, Dialect
from llama_corral.worker.api.answers.native import Native
from llama_corral.worker.api.answers.openai_chat import OpenAIChat
from llama_corral.worker.api.answers.openai_completions import OpenAICompletions
from llama_corral.worker.api.answers.results import LOWEST_FLOAT, probs_json, random_id, timings_json
from llama_corral.worker.api.request.params import CompletionParams
from llama_corral.worker.chat.parsing.reply import ReplyFormat
from llama_corral.worker.engine.messages import Finished, Piece, Progress, Sampling, Timings, TokenProb, TokenProbs
from msgspec.structs import replace

TIMINGS = Timings(cache_n=2, prompt_n=4, prompt_ms=8.0, predicted_n=3, predicted_ms=10.0)
PROBS = TokenProbs(TokenProb(5, "é".encode(), -0.5), (TokenProb(6, b"\xc3", -math.inf),))
PIECE = Piece(0, 'a "b"\n', (5,), 1, 6)
DONE = Finished(0, 1, "whole text", (5, 6), "limit", "", 3, 6, 8, True, False, TIMINGS)
PROGRESS = Progress(0, 6, 2, 2, 1.5, replace(TIMINGS, prompt_n=0, prompt_ms=0.0, predicted_n=0, predicted_ms=0.0))


def detokenize(tokens: Sequence[int]) -> str:
    return f"prompt {list(tokens)}"


def answer(**fields: Any) -> AnswerInfo:
    prompts = [[1, 2], [3]]
    return AnswerInfo(
        CompletionParams(**fields), "tiny", "b0-test", prompts, detokenize, len, id="chatcmpl-1", created=7
    )


def events(data: bytes) -> list[Any]:
    """Parse a stream's bytes as a client does."""
    assert data.endswith(b"\n\n")
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n")[:-1]]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def streamed(dialect: Dialect, *given: Piece | Finished | Progress) -> list[Any]:
    data = b""
    for event in given:
        match event:
            case Piece():
                data += dialect.piece(event.index, event)
            case Finished():
                data += dialect.finished(event.index, event)
            case Progress():
                data += dialect.progress(event.index, event)
    return events(data + dialect.end())


# -- shared parts ----------------------------------------------------------------------------------------------------


def test_rates_do_not_count_the_first_token_and_cached_tokens() -> None:
    shown = timings_json(TIMINGS)
    assert (shown["cache_n"], shown["prompt_n"], shown["prompt_per_second"]) == (2, 4, 500.0)
    assert (shown["predicted_per_second"], shown["predicted_per_token_ms"]) == (200.0, 5.0)
    assert "draft_n" not in shown
    assert timings_json(replace(TIMINGS, draft_n=4, draft_n_accepted=2))["draft_n_accepted"] == 2


@pytest.mark.parametrize("predicted", [0, 1])
def test_rates_are_never_infinite(predicted: int) -> None:
    shown = timings_json(Timings(0, 0, 0.0, predicted, 0.0))
    assert all(math.isfinite(value) and value >= 0 for value in shown.values())


def test_ids_are_long_and_unique() -> None:
    assert len(random_id("chatcmpl-")) == 41
    assert random_id("") != random_id("")


# -- native ----------------------------------------------------------------------------------------------------------


def test_native_result() -> None:
    shown: Any = Native(answer(return_tokens=True)).full_body([DONE])
    assert shown["content"] == "whole text"
    assert shown["tokens"] == [5, 6]
    assert shown["prompt"] == "prompt [1, 2]"
    assert (shown["stop"], shown["stop_type"], shown["tokens_cached"], shown["model"]) == (True, "limit", 8, "tiny")
    assert "completion_probabilities" not in shown
    assert Native(answer()).result(0, DONE)["tokens"] == []


def test_invalid_bytes_are_replaced_and_an_incomplete_character_is_omitted() -> None:
    entries = [TokenProbs(TokenProb(6, piece, -1.0), ()) for piece in (b"\xa9", b"\xc3")]
    assert [entry["token"] for entry in probs_json(entries, False)] == ["\ufffd", ""]


def test_native_results_of_several_prompts_are_a_list_in_order() -> None:
    shown: Any = Native(answer(n=2)).full_body([DONE, DONE, replace(DONE, text="other")])
    assert [item["index"] for item in shown] == [0, 1, 2]
    assert [item["prompt"] for item in shown] == ["prompt [1, 2]", "prompt [1, 2]", "prompt [3]"]


def test_native_stream() -> None:
    piece, last = streamed(Native(answer(stream=True, return_tokens=True)), PIECE, DONE)
    assert piece == {
        "index": 0, "content": 'a "b"\n', "tokens": [5], "stop": False, "id_slot": -1, "tokens_predicted": 1,
        "tokens_evaluated": 6,
    }  # fmt: skip
    assert (last["content"], last["tokens"], last["stop"]) == ("", [], True)


def test_both_ways_to_render_a_piece_agree() -> None:
    dialect = Native(answer(stream=True))
    with_timings = events(dialect.piece(3, replace(PIECE, tokens=(5, 6), timings=TIMINGS)))[0]
    del with_timings["timings"]
    assert events(dialect.piece(3, replace(PIECE, tokens=(5, 6)))) == [with_timings]


def test_response_fields() -> None:
    fields = ("content", "generation_settings/n_predict", "missing", "content/deeper")
    shown: Any = Native(answer(response_fields=fields, n_predict=9)).full_body([DONE])
    assert shown == {"content": "whole text", "generation_settings/n_predict": 9}


def test_probabilities() -> None:
    shown: Any = Native(answer(sampling=Sampling(n_probs=1))).full_body([replace(DONE, probs=(PROBS,))])
    assert shown["completion_probabilities"] == [
        {
            "id": 5, "token": "é", "bytes": [195, 169], "logprob": -0.5,
            "top_logprobs": [{"id": 6, "token": "", "bytes": [195], "logprob": LOWEST_FLOAT}],
        }
    ]  # fmt: skip
    after = Native(answer(stream=True, sampling=Sampling(n_probs=1, post_sampling_probs=True)))
    entry = events(after.piece(0, replace(PIECE, probs=(PROBS,))))[0]["completion_probabilities"][0]
    assert {"prob", "top_probs"} <= entry.keys()


def test_progress() -> None:
    shown = streamed(Native(answer(stream=True, timings_per_token=True)), PROGRESS)[0]
    assert shown["prompt_progress"] == {"total": 6, "cache": 2, "processed": 2, "time_ms": 1}
    assert shown["timings"]["prompt_n"] == 0
    assert "timings" not in streamed(Native(answer(stream=True)), PROGRESS)[0]


# -- OpenAI's completions --------------------------------------------------------------------------------------------


def test_openai_completion() -> None:
    other = replace(DONE, text="b", stop_type="eos", n_prompt=10)
    shown: Any = OpenAICompletions(answer()).full_body([DONE, other])
    assert [(c["text"], c["index"], c["finish_reason"]) for c in shown["choices"]] == [
        ("whole text", 0, "length"),
        ("b", 1, "stop"),
    ]
    assert (shown["object"], shown["model"], shown["id"]) == ("text_completion", "tiny", "chatcmpl-1")
    assert shown["usage"] == {
        "completion_tokens": 6, "prompt_tokens": 16, "total_tokens": 22, "prompt_tokens_details": {"cached_tokens": 4},
    }  # fmt: skip
    assert "__verbose" not in shown


def test_choices_of_one_prompt_share_its_tokens() -> None:
    shown: Any = OpenAICompletions(answer(n=2)).full_body([DONE, DONE])
    assert (shown["usage"]["prompt_tokens"], shown["usage"]["completion_tokens"]) == (6, 6)


def test_openai_completion_stream() -> None:
    piece, last, done = streamed(OpenAICompletions(answer(stream=True)), PIECE, DONE)
    assert piece["choices"] == [{"text": 'a "b"\n', "index": 0, "logprobs": None, "finish_reason": None}]
    assert "usage" not in piece
    assert last["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert last["usage"]["completion_tokens"] == 3
    assert done == "[DONE]"


# -- OpenAI's chat ---------------------------------------------------------------------------------------------------


def test_chat_completion() -> None:
    shown: Any = OpenAIChat(answer(verbose=True, reply=ReplyFormat(opening="Once: "))).full_body([DONE])
    assert shown["choices"][0]["message"] == {"role": "assistant", "content": "Once: whole text"}
    assert shown["object"] == "chat.completion"
    assert shown["__verbose"]["content"] == "whole text"
    assert shown["timings"]["predicted_n"] == 3


def test_chat_stream() -> None:
    first, piece, last, done = streamed(OpenAIChat(answer(stream=True)), PIECE, DONE)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert piece["choices"][0] == {"finish_reason": None, "index": 0, "delta": {"content": 'a "b"\n'}}
    assert last["choices"][0] == {"finish_reason": "length", "index": 0, "delta": {}}
    assert "timings" in last
    assert done == "[DONE]"
    assert {chunk["id"] for chunk in (first, piece, last)} == {"chatcmpl-1"}
    assert {chunk["object"] for chunk in (first, piece, last)} == {"chat.completion.chunk"}


def test_chat_stream_with_usage() -> None:
    *_, last, usage, done = streamed(OpenAIChat(answer(stream=True, include_usage=True)), PIECE, DONE)
    assert "timings" not in last
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 9
    assert "timings" in usage
    assert done == "[DONE]"


def test_chat_stream_without_content() -> None:
    first, last, _ = streamed(OpenAIChat(answer(stream=True)), replace(DONE, text="", stop_type="eos"))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] == "stop"


def test_chat_stream_of_two_choices() -> None:
    chunks = streamed(
        OpenAIChat(answer(stream=True, n=2, include_usage=True)),
        PIECE, replace(PIECE, index=1), DONE, replace(DONE, index=1),
    )  # fmt: skip
    assert [chunk["choices"][0]["index"] for chunk in chunks[:-2]] == [0, 0, 1, 1, 0, 1]
    assert chunks[-2]["usage"]["completion_tokens"] == 6
    assert chunks[-2]["usage"]["prompt_tokens"] == 6


def test_chat_progress_precedes_the_first_chunk() -> None:
    progress, first, *_ = streamed(OpenAIChat(answer(stream=True)), PROGRESS, PIECE, DONE)
    assert progress["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert progress["prompt_progress"]["processed"] == 2
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}


def test_chat_probabilities_in_a_stream() -> None:
    dialect = OpenAIChat(answer(stream=True, sampling=Sampling(n_probs=1)))
    _, piece = events(dialect.piece(0, replace(PIECE, probs=(PROBS,))))
    assert piece["choices"][0]["logprobs"]["content"][0]["id"] == 5
    assert dialect.piece(0, replace(PIECE, text="", probs=(PROBS,))) == b""
    (later,) = events(dialect.piece(0, replace(PIECE, probs=(PROBS,))))
    assert len(later["choices"][0]["logprobs"]["content"]) == 2, "those of a token without text come with the next"


@pytest.mark.parametrize(("shows", "texts"), [(True, [None, "Once ", 'a "b"\n']), (False, [None, 'a "b"\n'])])
def test_chat_stream_of_a_prefill(shows: bool, texts: list[str | None]) -> None:
    chunks = streamed(
        OpenAIChat(answer(stream=True, reply=ReplyFormat(opening="Once ", shows_opening=shows))), PIECE, DONE
    )
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-2]] == texts
