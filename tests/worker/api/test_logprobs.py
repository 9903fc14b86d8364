"""Probabilities of the tokens in OpenAI's dialects over HTTP, whole and streamed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_templates import HERMES
from programs import Program, post
from worker_http import stream

CHAT = {"messages": [{"role": "user", "content": "Tell me about the sea"}], "max_tokens": 4}


@pytest.mark.parametrize("post_sampling", [False, True])
def test_logprobs_0_are_those_of_the_chosen_tokens(worker: Program, post_sampling: bool) -> None:
    body = {"prompt": "The sea", "max_tokens": 6, "logprobs": 0, "seed": 3, "post_sampling_probs": post_sampling}
    choice = post(worker, "/v1/completions", body)["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["text"]
    assert len(content) == 6
    assert all(entry["top_probs" if post_sampling else "top_logprobs"] == [] for entry in content)
    chat = {**CHAT, "logprobs": True, "top_logprobs": 0}
    content = post(worker, "/v1/chat/completions", chat)["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in content] == [[]] * 4
    assert post(worker, "/v1/completions", {"prompt": "a", "max_tokens": 1})["choices"][0]["logprobs"] is None


def test_text_offsets_are_those_of_the_tokens_in_the_text(worker: Program) -> None:
    text = "sea é鼙🤠!"
    body = {"prompt": "a", "max_tokens": 40, "logprobs": 1, "grammar": f'root ::= "{text}"', "n": 2, "temperature": 0}
    for choice in post(worker, "/v1/completions", body)["choices"]:
        shown = choice["logprobs"]
        assert choice["text"] == text
        assert len(shown["text_offset"]) == len(shown["tokens"])
        for offset, entry in zip(shown["text_offset"], shown["content"], strict=True):
            written = bytes(entry["bytes"])
            assert written in text[offset:].encode()
            assert offset == len(text) or text[offset:].encode().find(written) < 4
    *chunks, _ = stream(worker, "/v1/completions", body)
    for index in range(2):
        said = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        offsets = [offset for choice in said if choice["logprobs"] for offset in choice["logprobs"]["text_offset"]]
        assert offsets == sorted(offsets)
        assert offsets == shown["text_offset"]


@pytest.mark.parametrize("n", [21, -1])
def test_top_logprobs_have_a_limit(worker: Program, n: int) -> None:
    error = post(worker, "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": n}, 400)["error"]
    assert "'top_logprobs'" in error["message"]
    post(worker, "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 20})


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_stream_with_tools_has_the_probabilities_of_all_tokens(
    start_worker: Callable[..., Program], tmp_path: Path, choice: str
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(HERMES)
    program = start_worker("--chat-template-file", str(template), "--threads", "1", "--ctx-size", "1024")
    parameters = {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    body = {**CHAT, "max_tokens": 200, "tools": [tool], "tool_choice": choice, "logprobs": True, "top_logprobs": 1,
            "temperature": 0}  # fmt: skip
    whole = post(program, "/v1/chat/completions", body)["choices"][0]
    chunks = [chunk for chunk in stream(program, "/v1/chat/completions", body) if chunk != "[DONE]"]
    assert bool(whole["message"].get("tool_calls")) == (choice == "required")
    shown = [chunk["choices"][0].get("logprobs") for chunk in chunks]
    ids = [entry["id"] for probs in shown if probs for entry in probs["content"]]
    assert ids == [entry["id"] for entry in whole["logprobs"]["content"]]
