"""Greedy texts of a real model, SmolLM2-135M-Instruct, are those that llama-server wrote for the same prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import reference_texts
from programs import Program, Programs, post
from real_model import smollm2
from reference_texts import N_PREDICT, PROMPTS, Record, conversation

pytestmark = pytest.mark.slow

INDEXES = range(len(PROMPTS))


@pytest.fixture(scope="module")
def worker(module_programs: Programs) -> Program:
    options = {"--model": str(smollm2()), "--parallel": "1", "--ctx-size": "4096", "--threads": "1"}
    return module_programs.worker(*(word for pair in options.items() for word in pair), model=None)


@pytest.fixture(scope="module")
def records() -> reference_texts.Records:
    return reference_texts.load(smollm2().stem)


def events(program: Program, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the objects of a stream."""
    with program.client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def completion(program: Program, index: int, *, stream: bool, cached: bool) -> str:
    body = {"prompt": PROMPTS[index], "n_predict": N_PREDICT, "temperature": 0, "cache_prompt": cached}
    if not stream:
        return str(post(program, "/completion", body)["content"])
    return "".join(event["content"] for event in events(program, "/completion", body))


def chat(program: Program, index: int, *, stream: bool, cached: bool) -> tuple[str, str]:
    """Return the text and the reason for which it ends."""
    fields = {"max_tokens": N_PREDICT, "temperature": 0, "cache_prompt": cached}
    body = {"messages": conversation(index), **fields}
    path = "/v1/chat/completions"
    if not stream:
        (choice,) = post(program, path, body)["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    text, reason = "", ""
    for event in events(program, path, body):
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
    return text, reason


@pytest.mark.parametrize("index", INDEXES)
def test_a_completion_is_that_of_llama_server(worker: Program, records: reference_texts.Records, index: int) -> None:
    """With an empty cache first, then with the prompt in the cache; one of them is a stream, in turn."""
    for cached, record in zip((False, True), records.completions[index], strict=True):
        text = completion(worker, index, stream=cached == bool(index % 2), cached=cached)
        assert record.matches(text), f"{text!r} is not {record}"


@pytest.mark.parametrize("index", INDEXES)
def test_a_chat_is_that_of_llama_server(worker: Program, records: reference_texts.Records, index: int) -> None:
    for cached, record in zip((False, True), records.chats[index], strict=True):
        text, reason = chat(worker, index, stream=cached == bool(index % 2), cached=cached)
        assert record.matches(text), f"{text!r} is not {record}"
        assert "\ufffd" not in text
        assert text != record.text or reason == record.reason


# -- comparing -------------------------------------------------------------------------------------------------------

TIES = [reference_texts.Tie(2, "x"), reference_texts.Tie(5, "\xc3"), reference_texts.Tie(4, "")]


@pytest.mark.parametrize(
    ("text", "is_match"),
    [
        ("abcd\u20ac", True),
        ("abcd\u20ac\ufffd", True),
        ("abx and more", True),
        ("abcd", True),  # the end was nearly as likely
        ("abcde", False),
        ("aby", False),
        ("ab", False),
        ("", False),
        ("xx", False),
    ],
)
def test_a_text_matches_only_from_a_near_tie_on(text: str, is_match: bool) -> None:
    assert Record("abcd\u20ac", "stop", TIES).matches(text) is is_match


def test_all_near_ties_are_recorded_at_their_place() -> None:
    """The server told nothing of the first token of the euro sign, and all three bytes with the second one."""

    def token(likelihood: float, *listed: int) -> dict[str, Any]:
        return {"logprob": likelihood, "bytes": list(listed)}

    steps = [
        {**token(-1, 97), "top_logprobs": [token(-1, 97), token(-1.1, 98), token(-1.29, 99, 100), token(-1.4, 101)]},
        {**token(-2, *"\u20ac".encode()), "top_logprobs": [token(-2, 0xAC), token(-2.2, 0xA9), token(-9, 97)]},
        {**token(-1), "top_logprobs": [token(-1), token(-1.2, 32), token(-2, 98)]},
    ]
    found = [(tie.at, tie.other) for tie in reference_texts.near_ties(steps)]
    assert found == [(0, "b"), (0, "cd"), (3, "\xa9"), (4, " ")]
    assert Record("a\u20ac", "stop", reference_texts.near_ties(steps)).matches("a\u20a9 is not it")
