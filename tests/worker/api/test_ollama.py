"""Ollama's dialect in the worker: converted requests, rendered answers, and both over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from llama_corral.common.base.errors import InvalidRequest, ServerFault
from llama_corral.common.web.json_fields import Fields
from llama_corral.worker.api.answers.dialect import AnswerInfo
from llama_corral.worker.api.ollama.answer import OllamaAnswer, RequestInfo, as_message, as_response
from llama_corral.worker.api.ollama.request import chat_body, completion_fields, generate_messages
from llama_corral.worker.api.request.params import CompletionParams
from llama_corral.worker.chat.formats.formats import AnswerFormat, JsonCalls, Span
from llama_corral.worker.chat.parsing.reply import PLAIN, ReplyFormat
from llama_corral.worker.chat.tools import read_tools
from llama_corral.worker.engine.messages import Finished, Piece, Timings, TokenProb, TokenProbs
from media_files import wav
from msgspec.structs import replace
from programs import Program, Programs, wait_until

TIMINGS = Timings(cache_n=2, prompt_n=4, prompt_ms=8.5, predicted_n=3, predicted_ms=10.0)
DONE = Finished(0, 1, "whole text", (5, 6), "eos", "", 3, 6, 8, True, False, TIMINGS)
PROBS = TokenProbs(TokenProb(5, b" a", -0.5), (TokenProb(5, b" a", -0.5), TokenProb(6, b" b", -1.5)))
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
HERMES = AnswerFormat(Span("<think>", "</think>"), calls=JsonCalls(call=Span("<tool_call>", "</tool_call>")))
CALLS = ReplyFormat(form=HERMES, tools=read_tools(Fields({"tools": [LOOK]})).offered)
USER = {"role": "user", "content": "Question"}


# -- requests --------------------------------------------------------------------------------------------------------


def body_of(*messages: Any, **fields: Any) -> dict[str, Any]:
    return chat_body(fields, list(messages), continues=True)


def test_messages_with_images_reasoning_and_calls() -> None:
    seen = {"role": "user", "content": "What?", "images": ["iVBORw0KGgo=", "/9j/4AA=", "data:image/x;base64,AA=="]}
    call = {"function": {"name": "look", "arguments": {"at": [1]}}}
    said = {"role": "assistant", "thinking": "Hm.", "tool_calls": [call, {"function": {"name": "go"}}]}
    results = [{"role": "tool", "tool_name": name, "content": "ok"} for name in ("go", "look")]
    user, assistant, first, second = body_of(seen, said, *results)["messages"]
    urls = [part["image_url"]["url"] for part in user["content"][:-1]]
    assert urls == ["data:image/png;base64,iVBORw0KGgo=", "data:image/jpeg;base64,/9j/4AA=", seen["images"][2]]
    assert user["content"][-1] == {"type": "text", "text": "What?"}
    assert (assistant["content"], assistant["reasoning_content"]) == ("", "Hm.")
    looked, went = assistant["tool_calls"]
    assert looked["function"] == {"name": "look", "arguments": {"at": [1]}}
    assert (first["tool_call_id"], second["tool_call_id"]) == (went["id"], looked["id"]), "by their names"
    assert {len(looked["id"]), len(went["id"])} == {9}


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("text", "messages\\[0\\]: must be an object"),
        ({"role": "boss", "content": "x"}, "invalid role 'boss'"),
        ({"content": "x"}, "invalid role ''"),
        ({"role": "user", "content": 5}, "'content': type must be string"),
        ({"role": "user", "content": "x", "images": "AA"}, "'images': type must be array"),
        ({"role": "assistant", "tool_calls": [{"name": "x"}]}, "Missing tool call name"),
        ({"role": "assistant", "tool_calls": {}, "thinking": 1}, "'thinking'"),
    ],
)
def test_bad_messages_are_refused(message: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        body_of(message)


def test_an_assistant_message_at_the_end_is_continued_and_not_repeated() -> None:
    body = body_of(USER, {"role": "assistant", "content": "Well"})
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in chat_body({}, [USER], continues=True)


@pytest.mark.parametrize(
    ("think", "fields"),
    [
        (None, {}),
        (True, {"chat_template_kwargs": {"enable_thinking": True}}),
        (False, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("high", {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}),
    ],
)
def test_think(think: object, fields: dict[str, Any]) -> None:
    body = body_of(USER, think=think)
    assert {name: body[name] for name in ("chat_template_kwargs", "reasoning_effort") if name in body} == fields


def test_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert body_of(USER, format=schema)["response_format"]["json_schema"]["schema"] == schema
    assert body_of(USER, format="json")["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "response_format" not in body_of(USER, format="")
    for wrong in ("xml", 5, []):
        with pytest.raises(InvalidRequest, match="invalid format"):
            body_of(USER, format=wrong)
    with pytest.raises(InvalidRequest, match="invalid think value"):
        body_of(USER, think="much")


def test_options() -> None:
    options = {
        "num_predict": -2, "num_ctx": 9999, "num_keep": 4, "repeat_last_n": -1, "temperature": 0.5, "stop": ["x"],
        "seed": 7, "min_p": None, "mystery": 1,
    }  # fmt: skip
    assert completion_fields({"options": options}, 512) == {
        "n_predict": -1, "n_keep": 4, "repeat_last_n": 512, "temperature": 0.5, "stop": ["x"], "seed": 7,
        "min_p": None, "stream": True,
    }  # fmt: skip
    assert completion_fields({"stream": False, "logprobs": True, "top_logprobs": 3}, 512) == {
        "stream": False, "n_probs": 3,
    }  # fmt: skip
    assert completion_fields({"logprobs": True}, 512)["n_probs"] == 1
    with pytest.raises(InvalidRequest, match="num_predict"):
        completion_fields({"options": {"num_predict": "many"}}, 512)
    with pytest.raises(InvalidRequest, match="between 0 and 20"):
        completion_fields({"top_logprobs": 21}, 512)


def test_generate_is_a_chat_of_one_message() -> None:
    assert generate_messages({"prompt": "Hi", "system": "Be kind", "images": ["AA=="]}) == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Hi", "images": ["AA=="]},
    ]


# -- answers ---------------------------------------------------------------------------------------------------------


def dialect(reply: ReplyFormat = PLAIN, worded: Any = as_message, **asked: Any) -> OllamaAnswer:
    answer = AnswerInfo(CompletionParams(reply=reply), "tiny", "b0", [[1, 2]], str, len)
    now = time.monotonic()
    return OllamaAnswer(answer, RequestInfo("tiny:latest", now - 2, now - 1, **asked), worded)


def lines(data: bytes) -> list[Any]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def streamed(made: OllamaAnswer, texts: Sequence[str], done: Finished = DONE) -> list[Any]:
    data = b"".join(made.piece(0, Piece(0, text, (5,), 1, 6)) for text in texts)
    return lines(data + made.finished(0, done) + made.end())


def test_a_whole_answer() -> None:
    shown: Any = dialect().full_body([DONE])
    assert shown["model"] == "tiny:latest"
    assert shown["message"] == {"role": "assistant", "content": "whole text"}
    assert (shown["done"], shown["done_reason"]) == (True, "stop")
    assert (shown["prompt_eval_count"], shown["eval_count"]) == (6, 3)
    assert (shown["prompt_eval_duration"], shown["eval_duration"]) == (8_500_000, 10_000_000)
    assert shown["total_duration"] > shown["load_duration"] >= 999_000_000
    shown = dialect(worded=as_response, returns_context=True).full_body([replace(DONE, stop_type="limit")])
    assert (shown["response"], shown["done_reason"], shown["context"]) == ("whole text", "length", [1, 2, 5, 6])


def test_a_stream_has_one_object_per_line() -> None:
    first, second, last = streamed(dialect(), ["a", "b"])
    assert [line["message"]["content"] for line in (first, second, last)] == ["a", "b", ""]
    assert [line["done"] for line in (first, second, last)] == [False, False, True]
    assert "done_reason" not in first
    assert "context" not in last
    assert lines(dialect().failed(ServerFault("gone"))) == [{"error": "gone"}]


THOUGHTFUL = '<think>I see.</think>\n\n<tool_call>{"name": "look", "arguments": {"at": [1, {"x": "}"}]}}</tool_call>\n'


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_reasoning_and_calls_streamed_in_any_pieces(size: int) -> None:
    text = THOUGHTFUL + '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    *said, last = streamed(dialect(CALLS), [text[i : i + size] for i in range(0, len(text), size)])
    assert "".join(line["message"].get("thinking", "") for line in said) == "I see."
    assert "".join(line["message"]["content"] for line in said) == ""
    calls = [call for line in said for call in line["message"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [
        {"index": 0, "name": "look", "arguments": {"at": [1, {"x": "}"}]}},
        {"index": 1, "name": "look", "arguments": {}},
    ]
    assert last["message"] == {"role": "assistant", "content": ""}
    whole: Any = dialect(CALLS).full_body([replace(DONE, text=text)])
    assert [call["function"] for call in whole["message"]["tool_calls"]] == [call["function"] for call in calls]
    assert whole["message"]["thinking"] == "I see."


def test_a_truncated_call_is_left_out() -> None:
    cut = replace(DONE, text=THOUGHTFUL[:-25], stop_type="limit")
    *said, last = streamed(dialect(CALLS), [cut.text], cut)
    shown = "".join(line["message"]["content"] for line in said)
    assert shown == ""
    assert not any("tool_calls" in line["message"] for line in said)
    assert last["done_reason"] == "length"
    assert dialect(CALLS).full_body([cut])["message"]["content"] == shown  # type: ignore[index]


def test_probabilities() -> None:
    made = dialect(worded=as_response, top_logprobs=2)
    (line,) = lines(made.piece(0, Piece(0, " a", (5,), 1, 6, probs=(PROBS,))))
    (entry,) = line["logprobs"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == (" a", -0.5, [32, 97])
    assert [other["token"] for other in entry["top_logprobs"]] == [" a", " b"]
    whole: Any = dialect(worded=as_response).full_body([replace(DONE, probs=(PROBS,))])
    assert "top_logprobs" not in whole["logprobs"][0]


# -- over HTTP -------------------------------------------------------------------------------------------------------


def post(program: Program, verb: str, **body: Any) -> Any:
    response = program.client.post(f"/api/{verb}", json={"model": "tiny", "stream": False, **body})
    assert response.status_code == 200, response.text
    return response.json()


def refusal(program: Program, verb: str, **body: Any) -> tuple[int, str]:
    response = program.client.request(
        "DELETE" if verb == "delete" else "POST", f"/api/{verb}", json={"model": "tiny", **body}
    )
    assert set(response.json()) == {"error"}
    return response.status_code, response.json()["error"]


def test_greedy_answers_equal_those_of_openai_chats(worker: Program) -> None:
    asked = {"messages": [USER], "max_tokens": 8, "temperature": 0, "repeat_penalty": 1.0}
    expected = worker.client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
    options = {"num_predict": 8, "temperature": 0, "repeat_penalty": 1.0}
    assert post(worker, "chat", messages=[USER], options=options)["message"]["content"] == expected
    assert post(worker, "generate", prompt="Question", options=options)["response"] == expected
    with worker.client.stream("POST", "/api/chat", json={"messages": [USER], "options": options}) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        said = [json.loads(line) for line in response.iter_lines()]
    assert "".join(line["message"]["content"] for line in said) == expected
    assert said[-1]["eval_count"] == 8


def test_generate_raw_with_json_and_after_a_context(worker: Program) -> None:
    options = {"num_predict": 6, "temperature": 0}
    native = worker.client.post("/completion", json={"prompt": "Once", "n_predict": 6, "temperature": 0}).json()
    raw = post(worker, "generate", prompt="Once", raw=True, options=options)
    assert raw["response"] == native["content"]
    assert "context" not in raw
    answered = post(worker, "generate", prompt="x", raw=True, format={"enum": [12]}, options={"num_predict": 30})
    assert answered["response"].strip() == "12"
    first = post(worker, "generate", prompt="Once", options=options)
    later = post(worker, "generate", prompt="more", context=first["context"], options=options)
    assert later["context"][: len(first["context"])] == first["context"]
    assert later["prompt_eval_count"] > first["prompt_eval_count"] + 6


def test_a_continued_message_is_not_repeated(worker: Program) -> None:
    begun = [USER, {"role": "assistant", "content": "Once upon"}]
    whole = post(worker, "chat", messages=begun, options={"num_predict": 3, "temperature": 0})
    assert not whole["message"]["content"].startswith("Once upon")


def test_a_suffix_is_accepted_by_a_model_with_infill_tokens(programs: Programs, worker: Program) -> None:
    assert post(worker, "generate", prompt="def f(", suffix="return 1", options={"num_predict": 4})["response"]
    coder = programs.worker("--alias", "coder", model="tiny-llama-b.gguf")
    shown = coder.client.post("/api/show", json={"model": "coder:latest"}).json()
    assert shown["capabilities"][0] == "completion"


def test_an_empty_request_loads_the_model(worker: Program) -> None:
    assert post(worker, "chat")["done_reason"] == "load"
    assert post(worker, "generate", prompt="")["response"] == ""
    assert post(worker, "generate")["done"] is True


def test_refusals(worker: Program) -> None:
    assert refusal(worker, "chat", messages="x")[0] == 400
    assert refusal(worker, "chat", messages=[USER], think=True) == (400, '"tiny" does not support thinking')
    assert refusal(worker, "chat", messages=[USER], keep_alive="soon")[0] == 400
    assert refusal(worker, "chat", messages=[USER], options=[])[0] == 400
    assert refusal(worker, "generate", prompt="x", template="{{ .Prompt }}")[0] == 501
    assert refusal(worker, "generate", prompt="x", raw=True, options={"stop": 5})[0] == 400
    assert refusal(worker, "generate", prompt="x", context=["a", -1])[0] == 400
    assert refusal(worker, "embed", input="x")[0] == 501
    image = "iVBORw0KGgo="
    assert refusal(worker, "generate", prompt="x", raw=True, images=[image])[0] == 400
    assert refusal(worker, "generate", prompt="x", images=[image])[0] == 400
    assert refusal(worker, "generate", prompt="x", images=[image], context=[5])[0] in (400, 501)
    assert refusal(worker, "show", model="other") == (404, "model 'other' not found")
    for verb in ("pull", "push", "create", "copy", "delete"):
        for model in ("other", "", None, *(["tiny"] if verb != "pull" else [])):  # its own needs no download
            status, why = refusal(worker, verb, model=model)
            assert status == 501
            assert "one model" in why
        response = worker.client.request("DELETE" if verb == "delete" else "POST", f"/api/{verb}", json={})
        assert (response.status_code, "one model" in response.json()["error"]) == (501, True)
    long = refusal(worker, "generate", prompt="word " * 3000)
    assert long[0] == 400
    assert "context size" in long[1]


def test_model_listings(worker: Program) -> None:
    assert worker.client.get("/api/version").json()["version"].count(".") == 2
    (entry,) = worker.client.get("/api/tags").json()["models"]
    assert entry["name"] == entry["model"] == "tiny:latest"
    assert entry["details"]["family"] == "llama"
    (running,) = worker.client.get("/api/ps").json()["models"]
    assert running["context_length"] == 1024
    assert running["size_vram"] == 0
    assert running["digest"] == entry["digest"]
    shown = worker.client.post("/api/show", json={"name": "tiny"}).json()
    assert shown["model_info"]["llama.block_count"] == 2
    assert "num_ctx" in shown["parameters"]
    assert worker.client.head("/").status_code == 200


def test_without_a_router_keep_alive_sets_the_idle_timeout(programs: Programs) -> None:
    program = programs.worker("--alias", "tiny")
    assert program.client.get("/api/ps").json()["models"][0]["expires_at"] > "2100"
    post(program, "generate", prompt="x", keep_alive="10m", options={"num_predict": 1})
    assert program.client.get("/api/ps").json()["models"][0]["expires_at"] < "2100"
    post(program, "generate", keep_alive=0)
    wait_until(lambda: not program.client.get("/api/ps").json()["models"], "sleep")
    assert program.client.get("/props").json()["is_sleeping"]
    assert post(program, "generate", prompt="x", keep_alive=-1, options={"num_predict": 1})["response"]
    assert program.client.get("/api/ps").json()["models"][0]["expires_at"] > "2100"


def test_embeddings(embedder: Program) -> None:
    one = post(embedder, "embed", input="a fox")
    two = post(embedder, "embed", input=["a fox", "the sea"])
    assert two["embeddings"][0] == pytest.approx(one["embeddings"][0], abs=1e-4)
    assert two["prompt_eval_count"] > one["prompt_eval_count"] > 0
    assert sum(x * x for x in one["embeddings"][0]) == pytest.approx(1)
    short = post(embedder, "embed", input="a fox", dimensions=4)["embeddings"][0]
    assert len(short) == 4
    assert sum(x * x for x in short) == pytest.approx(1)
    assert len(post(embedder, "embeddings", prompt="a fox")["embedding"]) == 64
    assert post(embedder, "embed", input=[])["embeddings"] == []
    assert post(embedder, "embeddings")["embedding"] == []
    long = "word " * 5000
    assert len(post(embedder, "embed", input=long)["embeddings"][0]) == 64
    assert refusal(embedder, "embed", input=long, truncate=False) == (
        400,
        "the input length exceeds the context length",
    )
    assert refusal(embedder, "embed", input=5)[0] == 400
    assert refusal(embedder, "embed", input=[1, 2])[0] == 400


@pytest.mark.parametrize("field", ["keep_alive", "ttl"])
def test_without_a_router_the_other_dialects_set_the_idle_timeout_too(programs: Programs, field: str) -> None:
    program = programs.worker("--threads", "1", "--embeddings", "--pooling", "mean")
    chat, short = {"messages": [USER]}, {"max_tokens": 1, "max_output_tokens": 1, "n_predict": 1}
    asked = {"/v1/chat/completions": chat, "/v1/completions": {"prompt": "x"}, "/v1/embeddings": {"input": "x"}}
    asked |= {"/v1/messages": chat, "/v1/responses": {"input": "x"}, "/completion": {"prompt": "x"}}
    for number, (path, body) in enumerate(asked.items(), 1):
        given = {**body, **short, field: 1000 * number}
        assert program.client.post(path, json=given).status_code == 200, path
        (running,) = program.client.get("/api/ps").json()["models"]
        left = datetime.fromisoformat(running["expires_at"]) - datetime.now(UTC)
        assert 0 <= 1000 * number - left.total_seconds() < 60, path
    assert program.client.post("/v1/completions", json={"prompt": "x", field: "soon"}).status_code == 400


def seconds_left(program: Program) -> float:
    (running,) = program.client.get("/api/ps").json()["models"]
    return (datetime.fromisoformat(running["expires_at"]) - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize("field", ["keep_alive", "ttl"])
def test_without_a_router_every_endpoint_sets_the_idle_timeout(programs: Programs, models: Path, field: str) -> None:
    options = ("--mmproj", str(models / "mmproj-audio.gguf"), "--ctx-size", "1024", "--threads", "1")
    program = programs.worker("--embeddings", "--pooling", "mean", *options)
    chat, short = {"messages": [USER]}, {"options": {"num_predict": 1}}
    asked = {"generate": {"prompt": "x", **short}, "chat": {**chat, **short}}
    asked |= {"embed": {"input": "x"}, "embeddings": {"prompt": "x"}}
    for number, (verb, body) in enumerate(asked.items(), 1):
        post(program, verb, **body, **{field: f"{1000 * number}"})
        assert 0 <= 1000 * number - seconds_left(program) < 60, verb
    heard = {"data": {"max_tokens": "1", field: "60"}, "files": {"file": wav()}}
    assert program.client.post("/v1/audio/transcriptions", **heard).status_code == 200
    assert 0 <= 60 - seconds_left(program) < 30
    heard["data"][field] = ""
    assert program.client.post("/v1/audio/transcriptions", **heard).status_code == 200
    heard["data"][field] = "soon"
    assert program.client.post("/v1/audio/transcriptions", **heard).status_code == 400
    assert post(program, "generate", **{field: 0})["done_reason"] == "unload"
    wait_until(lambda: not program.client.get("/api/ps").json()["models"], "sleep")


def test_a_worker_alone_lists_its_aliases_and_needs_no_download_of_them(programs: Programs) -> None:
    program = programs.worker("--alias", "tiny,gpt-oss:20b", "--threads", "1")
    names = [entry["model"] for entry in program.client.get("/api/tags").json()["models"]]
    assert sorted(names) == ["gpt-oss:20b", "tiny:latest"]
    for name in (*names, "tiny"):
        response = program.client.post("/api/pull", json={"model": name})
        assert (response.text, response.headers["content-type"]) == ('{"status":"success"}\n', "application/x-ndjson")
        assert program.client.post("/api/pull", json={"name": name, "stream": False}).json() == {"status": "success"}
        assert program.client.post("/api/show", json={"model": name}).status_code == 200
    assert program.client.post("/api/pull", json={"model": "other"}).status_code == 501
    version = program.client.get("/api/version").json()
    assert set(version) == {"version", "commit", "build_date"}
