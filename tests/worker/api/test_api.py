"""A worker over HTTP: the endpoints, their errors, and client disconnects."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from programs import Program, post, wait_until
from worker_http import stream

CHAT = {"messages": [{"role": "user", "content": "Tell me about the sea"}], "max_tokens": 4}
THINK = '{"enable_thinking": true}'
ENDLESS = {"prompt": "Once upon a time", "n_predict": -1, "ignore_eos": True}


def slots(program: Program) -> Any:
    return program.client.get("/slots").raise_for_status().json()


def none_is_busy(program: Program) -> bool:
    return not any(slot["is_processing"] for slot in slots(program))


def some_is_busy(program: Program) -> bool:
    return not none_is_busy(program)


# -- generating ------------------------------------------------------------------------------------------------------


def test_completion(worker: Program) -> None:
    shown = post(worker, "/completion", {"prompt": "Once upon", "n_predict": 5, "seed": 1, "return_tokens": True})
    assert shown["tokens_predicted"] == len(shown["tokens"]) == 5
    assert shown["stop_type"] == "limit"
    assert shown["prompt"].endswith("Once upon")
    assert shown["model"] == "tiny"
    assert shown["timings"]["prompt_n"] + shown["timings"]["cache_n"] == shown["tokens_evaluated"]


def test_a_stream_and_the_whole_answer_agree(worker: Program) -> None:
    body = {"prompt": "The quick brown", "n_predict": 24, "seed": 7}
    whole = post(worker, "/completion", body)["content"]
    *pieces, last = stream(worker, "/completion", body)
    assert "".join(piece["content"] for piece in pieces) == whole
    assert last["stop"] is True
    assert last["content"] == ""


def test_several_prompts_and_choices(worker: Program) -> None:
    shown = post(worker, "/completion", {"prompt": ["One", "Two"], "n_predict": 3, "n": 2, "seed": 3})
    assert [item["index"] for item in shown] == [0, 1, 2, 3]
    assert shown[0]["prompt"] == shown[1]["prompt"] != shown[2]["prompt"]
    assert [item["generation_settings"]["seed"] for item in shown] == [3, 4, 3, 4]
    merged = post(worker, "/v1/completions", {"prompt": ["One", "Two"], "max_tokens": 3})
    assert [choice["index"] for choice in merged["choices"]] == [0, 1]
    ended = [item["index"] for item in stream(worker, "/completion", {"prompt": ["One", "Two"], "n_predict": 3})
             if item["stop"]]  # fmt: skip
    assert sorted(ended) == [0, 1]


def test_stop_strings(worker: Program) -> None:
    whole = post(worker, "/completion", {"prompt": "Once", "n_predict": 30, "seed": 5})["content"]
    word = whole[10:13]
    shown = post(worker, "/completion", {"prompt": "Once", "n_predict": 30, "seed": 5, "stop": [word]})
    assert (shown["stop_type"], shown["stopping_word"]) == ("word", word)
    assert shown["content"] == whole[: whole.index(word)]
    pieces = list(stream(worker, "/completion", {"prompt": "Once", "n_predict": 30, "seed": 5, "stop": [word]}))
    assert "".join(piece["content"] for piece in pieces) == shown["content"]


def test_a_stream_has_an_event_for_every_token(worker: Program) -> None:
    ended = list(stream(worker, "/completion", {"prompt": "Once", "grammar": 'root ::= "ab"', "temperature": 0.0}))
    *_, end, last = ended
    assert (end["content"], len(end["tokens"]), last["stop_type"]) == ("", 1, "eos")
    assert len(ended) == last["tokens_predicted"] + 1
    body = {"prompt": "Once", "grammar": "root ::= [a] [b] [c] [x] [y] [z]", "stop": ["bcxyz", "cx!"], "n_probs": 1}
    *pieces, stopped, last = stream(worker, "/completion", body)
    assert [piece["content"] for piece in pieces] == ["a", "", "", "", ""]
    assert [piece["completion_probabilities"][0]["token"] for piece in pieces] == ["a", "", "", "", ""]
    assert (stopped["content"], "timings" in stopped) == ("", True)
    assert not any("timings" in piece for piece in pieces)
    assert (last["stop_type"], last["stopping_word"]) == ("word", "bcxyz")


def test_the_openai_client_chats(worker: Program) -> None:
    with openai.OpenAI(base_url=worker.url + "/v1", api_key="none", max_retries=0) as client:
        messages: Any = CHAT["messages"]
        whole = client.chat.completions.create(model="any", messages=messages, max_tokens=6, seed=4, logprobs=True)
        assert whole.model == "tiny"
        assert whole.system_fingerprint is not None
        assert whole.system_fingerprint.startswith("b")
        assert whole.choices[0].logprobs is not None
        chunks = list(
            client.chat.completions.create(
                model="any", messages=messages, max_tokens=6, seed=4, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
        said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert said == whole.choices[0].message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 6
        text = client.completions.create(model="any", prompt="Once", max_tokens=3)
        assert text.choices[0].finish_reason == "length"
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"


def test_verbose_shows_the_rendered_prompt(worker: Program) -> None:
    shown = post(worker, "/v1/chat/completions", {**CHAT, "verbose": True})
    assert "<|im_start|>user\nTell me about the sea<|im_end|>" in shown["__verbose"]["prompt"]
    assert "__verbose" not in post(worker, "/v1/chat/completions", CHAT)


def test_progress_is_sent_before_the_first_token(worker: Program) -> None:
    body = {"prompt": "The lazy dog. " * 40, "n_predict": 2, "return_progress": True, "cache_prompt": False}
    shown = list(stream(worker, "/completion", body))
    progress = [item["prompt_progress"] for item in shown if "prompt_progress" in item]
    assert progress[0]["processed"] == progress[0]["cache"] == 0
    assert progress[-1]["processed"] == progress[-1]["total"]


# -- refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("body", [b"{bad", b"", b"[]", b"5", b'"\xff"', b"[" * 100_000])
def test_malformed_json(worker: Program, path: str, body: bytes) -> None:
    response = worker.client.post(path, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_byte_order_mark_before_the_json_is_accepted(worker: Program) -> None:
    response = worker.client.post("/tokenize", content=b'\xef\xbb\xbf{"content": "a"}')
    assert response.json()["tokens"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_that_does_not_fit(worker: Program, streams: bool) -> None:
    error = post(worker, "/completion", {"prompt": "word " * 3000, "stream": streams}, 400)["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > error["n_ctx"] > 0
    assert none_is_busy(worker)


@pytest.mark.parametrize("streams", [False, True])
def test_an_error_before_the_first_token_has_its_own_status(worker: Program, streams: bool) -> None:
    body = {"prompt": "Hi", "repeat_penalty": -1, "stream": streams}
    assert "penalty" in post(worker, "/completion", body, 400)["error"]["message"]


def test_wrong_types_name_the_field(worker: Program) -> None:
    assert "'n_predict'" in post(worker, "/completion", {"prompt": "a", "n_predict": "x"}, 400)["error"]["message"]
    assert "'stream'" in post(worker, "/v1/chat/completions", {**CHAT, "stream": "x"}, 400)["error"]["message"]
    assert "prompt" in post(worker, "/completion", {}, 400)["error"]["message"]
    assert "messages" in post(worker, "/v1/chat/completions", {}, 400)["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/rerank"),
     ("POST", "/slots/0?action=save"), ("POST", "/v1/audio/transcriptions"),
     ("POST", "/v1/embeddings")],
)  # fmt: skip
def test_unsupported_endpoints_answer_501(worker: Program, method: str, path: str) -> None:
    response = worker.client.request(method, path, json={"input": "x"} if method == "POST" else None)
    assert response.status_code == 501
    assert response.json()["error"]["type"] == "not_supported_error"


def test_tools_are_disabled_and_unknown_paths_are_404(worker: Program) -> None:
    assert worker.client.get("/tools").status_code == 403
    assert worker.client.get("/nowhere").json()["error"]["code"] == 404
    assert worker.client.get("/completion").status_code == 404
    assert worker.client.get("/v1/models/other").status_code == 404


# -- leaving ---------------------------------------------------------------------------------------------------------


@contextmanager
def raw_request(program: Program, path: str, body: Any) -> Iterator[socket.socket]:
    """A client that can disconnect at any moment."""
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(program.address))) as connection:
        connection.sendall(head + payload)
        yield connection


@pytest.mark.parametrize("streams", [False, True])
def test_a_disconnect_frees_the_slot(worker: Program, streams: bool) -> None:
    with raw_request(worker, "/completion", {**ENDLESS, "stream": streams}):
        wait_until(lambda: some_is_busy(worker), "a busy slot", 5)
    wait_until(lambda: none_is_busy(worker), "the slot to be free", 1)


def test_a_waiting_request_is_dropped_when_its_client_disconnects(worker: Program) -> None:
    before = max(slot.get("id_task", 0) for slot in slots(worker))
    with raw_request(worker, "/completion", ENDLESS), raw_request(worker, "/completion", ENDLESS):
        wait_until(lambda: all(slot["is_processing"] for slot in slots(worker)), "busy slots", 5)
        with raw_request(worker, "/completion", ENDLESS):
            wait_until(lambda: "requests_deferred 1" in worker.client.get("/metrics").text, "a waiting request", 5)
        wait_until(lambda: "requests_deferred 0" in worker.client.get("/metrics").text, "no request to wait", 2)
    wait_until(lambda: none_is_busy(worker), "free slots", 2)
    assert max(slot["id_task"] for slot in slots(worker)) <= before + 3
    post(worker, "/completion", {"prompt": "Hi", "n_predict": 1})


# -- utilities -------------------------------------------------------------------------------------------------------


def test_tokenize_and_detokenize(worker: Program) -> None:
    text = "What is the answer? 日本 🤠"
    tokens = post(worker, "/tokenize", {"content": text})["tokens"]
    assert post(worker, "/detokenize", {"tokens": tokens})["content"].strip() == text
    assert post(worker, "/tokenize", {"content": [tokens[0], "a"], "add_special": True})["tokens"][0] == tokens[0]
    assert post(worker, "/tokenize", {})["tokens"] == []
    assert post(worker, "/detokenize", {})["content"] == ""


def test_pieces_are_text_or_bytes(worker: Program) -> None:
    pieces = [entry["piece"] for entry in post(worker, "/tokenize", {"content": "a ß", "with_pieces": True})["tokens"]]
    assert [195] in pieces
    assert any(isinstance(piece, str) for piece in pieces)


def test_templates_and_token_counts(worker: Program) -> None:
    prompt = post(worker, "/apply-template", CHAT)["prompt"]
    assert prompt == "<|im_start|>user\nTell me about the sea<|im_end|>\n<|im_start|>assistant\n"
    count = post(worker, "/v1/chat/completions/input_tokens", CHAT)
    tokens = post(worker, "/tokenize", {"content": prompt, "add_special": True})["tokens"]
    assert count == {"input_tokens": len(tokens), "object": "response.input_tokens"}


# -- monitoring ------------------------------------------------------------------------------------------------------


def test_models_and_props(worker: Program) -> None:
    entry = worker.client.get("/models").json()["data"][0]
    assert (entry["id"], entry["aliases"], entry["object"]) == ("tiny", ["tiny"], "model")
    assert entry["meta"]["n_ctx"] == 1024
    props = worker.client.get("/props").json()
    assert props["total_slots"] == 2
    assert props["model_path"].endswith("tiny-llama.gguf")
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    assert props["build_info"].startswith("b")
    assert props["is_sleeping"] is False
    assert "im_start" in props["chat_template"]
    assert post(worker, "/props", {}) == {"success": True}


def test_metrics_have_help_and_type(worker: Program) -> None:
    response = worker.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert int(response.headers["Process-Start-Time-Unix"]) > 0
    samples = [line.split()[0] for line in response.text.splitlines() if not line.startswith("#")]
    for name in samples:
        assert f"# HELP {name} " in response.text
        assert f"# TYPE {name} " in response.text
    assert "# TYPE llamacpp:n_tokens_max counter" in response.text
    assert len(samples) == 15


def test_endpoints_that_an_option_enables_or_disables(start_worker: Callable[..., Program]) -> None:
    program = start_worker("--no-slots", "--no-ui", "--threads", "1", "--ctx-size", "512")
    assert program.client.get("/slots").status_code == 501
    assert program.client.get("/metrics").status_code == 501
    assert program.client.post("/props", json={}).status_code == 501
    assert program.client.get("/").status_code == 404
    assert program.client.get("/models").json()["data"][0]["id"] == "tiny-llama.gguf"


@pytest.mark.parametrize(
    ("options", "thinks"), [([], False), (["--reasoning", "on"], True), (["--chat-template-kwargs", THINK], True)]
)
def test_anthropics_dialect_thinks_only_if_an_option_or_the_request_says_so(
    start_worker: Callable[..., Program], options: list[str], thinks: bool
) -> None:
    thought = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    template = (
        "{% for m in messages %}"
        + thought
        + "{{ m.content }}{% endfor %}{{ 'one two three four' if enable_thinking else '' }}"
    )
    program = start_worker("--chat-template", template, "--threads", "1", *options)

    def count(**more: Any) -> int:
        return int(post(program, "/v1/messages/count_tokens", {**CHAT, **more})["input_tokens"])

    on, off = count(thinking={"type": "enabled"}), count(thinking={"type": "disabled"})
    assert on > off
    assert count() == (on if thinks else off)
