"""OpenAI's Responses with a real worker: items, limits, usage, streams and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chat_templates
import pytest
from llama_corral.worker.api.responses.items import pack_reasoning
from openai.types.responses import Response
from programs import Program, Programs
from response_events import check_stream, kinds, read_stream

ON = {"type": "object", "properties": {"on": {"type": "boolean"}, "n": {"enum": [1, 2]}}, "required": ["on", "n"]}
SWITCH = {"type": "function", "name": "switch", "description": "S", "parameters": ON, "strict": True}


def serve(programs: Programs, directory: Path, source: str) -> Program:
    file = directory / "template.jinja"
    file.write_text(source)
    return programs.worker("--chat-template-file", str(file), "--ctx-size", "1024", "--parallel", "1", "--threads", "1")


@pytest.fixture(scope="module")
def thinking(module_programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = serve(module_programs, tmp_path_factory.mktemp("templates"), chat_templates.THINKING)
    yield program
    program.stop()


def ask(program: Program, **fields: Any) -> Response:
    body = {"input": "Hi", "temperature": 0, "max_output_tokens": 400, **fields}
    answer = program.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return Response.model_validate(answer.json(), strict=True)


def stream(program: Program, **fields: Any) -> tuple[Response, list[dict[str, Any]]]:
    body = {"input": "Hi", "temperature": 0, "max_output_tokens": 400, "stream": True, **fields}
    answer = program.client.post("/responses", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = read_stream(answer.content)
    return check_stream(events), events


def same(one: Response, other: Response) -> None:
    """Assert that both are equal apart from ids and times."""
    shown = [
        json.loads(response.model_dump_json(exclude={"id", "created_at", "completed_at"})) for response in (one, other)
    ]
    for response in shown:
        response["usage"]["input_tokens_details"] = None
        for item in response["output"]:
            del item["id"]
            item.pop("call_id", None)
    assert shown[0] == shown[1]


OFF = {"chat_template_kwargs": {"enable_thinking": False}}


def test_an_answer_truncated_by_its_limit_is_incomplete(worker: Program) -> None:
    whole = ask(worker, max_output_tokens=6, instructions="Be brief.", metadata={"a": "b"}, user="u")
    assert (whole.status, whole.id[:5], kinds(whole.output)) == ("incomplete", "resp_", ["message"])
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 6
    assert whole.usage.total_tokens == 6 + whole.usage.input_tokens
    assert (whole.instructions, whole.metadata, whole.max_output_tokens) == ("Be brief.", {"a": "b"}, 6)
    same(whole, stream(worker, max_output_tokens=6, instructions="Be brief.", metadata={"a": "b"}, user="u")[0])


def test_cached_tokens_are_counted(worker: Program) -> None:
    asked = {"input": "Tell me about cached tokens.", "max_output_tokens": 2}
    ask(worker, **asked)
    usage = ask(worker, **asked).usage
    assert usage is not None
    assert usage.input_tokens_details.cached_tokens == usage.input_tokens - 1


def test_a_required_call(thinking: Program) -> None:
    asked: dict[str, Any] = {"tools": [SWITCH], "tool_choice": "required", "parallel_tool_calls": False, **OFF}
    whole = ask(thinking, **asked)
    (call,) = whole.output
    assert call.type == "function_call"
    assert (call.name, call.call_id[:5], whole.status) == ("switch", "call_", "completed")
    assert json.loads(call.arguments)["n"] in (1, 2)
    streamed, events = stream(thinking, **asked)
    same(whole, streamed)
    assert sum(event["type"] == "response.function_call_arguments.delta" for event in events) > 3


def test_reasoning_is_a_separate_item(thinking: Program) -> None:
    whole = ask(thinking, max_output_tokens=12)
    (thought,) = whole.output
    assert thought.type == "reasoning"
    assert thought.content
    assert thought.encrypted_content is None
    assert whole.usage is not None
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens <= 12
    same(whole, stream(thinking, max_output_tokens=12)[0])
    asked = {"max_output_tokens": 12, "reasoning": {"summary": "auto"}}
    shown, events = stream(thinking, **asked)
    (summed,) = shown.output
    assert summed.type == "reasoning"
    assert [part.text for part in summed.summary] == [thought.content[0].text]
    assert sum(event["type"] == "response.reasoning_summary_text.delta" for event in events) > 3
    same(shown, ask(thinking, **asked))
    (carried,) = ask(thinking, max_output_tokens=12, include=["reasoning.encrypted_content"]).output
    assert carried.type == "reasoning"
    assert carried.encrypted_content == pack_reasoning(thought.content[0].text)


def test_a_json_schema_format(thinking: Program) -> None:
    form = {"format": {"type": "json_schema", "name": "state", "schema": ON}}
    whole = ask(thinking, text=form, **OFF)
    assert json.loads(whole.output_text)["n"] in (1, 2)
    assert whole.text is not None
    same(whole, stream(thinking, text=form, **OFF)[0])
    assert ask(thinking, reasoning={"effort": "none"}, max_output_tokens=4).output[0].type == "message"


def test_probabilities_of_the_text(worker: Program) -> None:
    asked = {
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "max_output_tokens": 5,
        "cache_prompt": False,
    }
    whole = ask(worker, **asked)
    (message,) = whole.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs
    assert "".join(entry.token for entry in part.logprobs) == whole.output_text
    assert {len(entry.top_logprobs) for entry in part.logprobs} == {2}
    same(whole, stream(worker, **asked)[0])


def test_additional_fields_of_llama_server(worker: Program) -> None:
    _, events = stream(worker, max_output_tokens=3, timings_per_token=True, return_progress=True, input="long " * 40)
    (progress, *_) = [event for event in events if "prompt_progress" in event]
    assert progress["type"] == "response.in_progress"
    assert any("timings" in event for event in events if event["type"] == "response.output_text.delta")
    assert "predicted_per_second" in events[-1]["timings"]


def test_old_turns_are_dropped_only_with_truncation_auto(worker: Program) -> None:
    old = [{"role": role, "content": f"{n} " + "word " * 100} for n in range(8) for role in ("user", "assistant")]
    items = [{"role": "developer", "content": "Stay calm."}, *old, {"role": "user", "content": "Now?"}]
    refused = worker.client.post("/v1/responses", json={"input": items})
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "exceed_context_size_error"
    kept = ask(worker, input=items, truncation="auto", max_output_tokens=2)
    assert kept.usage is not None
    assert 100 < kept.usage.input_tokens < 1024
    assert kept.truncation == "auto"
    assert ask(worker, input="short", truncation="auto", max_output_tokens=2).output


@pytest.mark.parametrize("path", ["/responses/input_tokens", "/v1/responses/input_tokens"])
def test_input_tokens_are_counted(worker: Program, path: str) -> None:
    body = {"input": "What is the best book?", "instructions": "Be brief.", "tools": []}
    counted = worker.client.post(path, json=body).json()
    usage = ask(worker, max_output_tokens=1, **body).usage
    assert usage is not None
    assert counted == {"object": "response.input_tokens", "input_tokens": usage.input_tokens}


@pytest.mark.parametrize(
    "fields", [{}, {"input": []}, {"input": "x", "temperature": "hot"}, {"input": "x", "tools": 1}]
)
def test_unsupported_requests_are_refused(worker: Program, fields: dict[str, Any]) -> None:
    answer = worker.client.post("/v1/responses", json={"stream": True, **fields})
    if fields == {"input": []}:  # as in llama-server: a chat may begin with the assistant
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
