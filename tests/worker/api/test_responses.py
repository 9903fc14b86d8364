"""OpenAI's Responses: input items become messages, and answers become items and events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest, ServerFault
from llama_corral.worker.api.answers.dialect import AnswerInfo
from llama_corral.worker.api.request.params import CompletionParams
from llama_corral.worker.api.responses.dialect import OpenAIResponses, probs_of
from llama_corral.worker.api.responses.items import messages_of, pack_reasoning, read_input
from llama_corral.worker.api.responses.output import OutputItems
from llama_corral.worker.api.responses.request import read_responses
from llama_corral.worker.chat.parsing.deltas import (
    ContentDelta,
    Delta,
    ParsedMessage,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegun,
)
from llama_corral.worker.chat.parsing.reply import PLAIN, ReplyFormat
from llama_corral.worker.engine.messages import Begun, Finished, Piece, Timings, TokenProb, TokenProbs
from openai.types.responses import Response
from response_events import check_stream, read_stream

TOKEN = "x" * 32

# -- items in --------------------------------------------------------------------------------------------------------


def messages(*items: dict[str, Any], instructions: str | None = None) -> list[dict[str, Any]]:
    return messages_of(read_input(list(items)), instructions)


def test_a_text_becomes_a_user_message() -> None:
    assert messages_of(read_input("Hi"), None) == [{"role": "user", "content": "Hi"}]
    assert messages_of(read_input("Hi"), "Be short.")[0] == {"role": "system", "content": "Be short."}


def test_messages_of_every_role() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:x", "detail": "low"}]
    said = [{"type": "output_text", "text": "b", "annotations": []}, {"type": "refusal", "refusal": "No."}]
    assert messages(
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": parts},
        {"role": "assistant", "content": said},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
    ) == [
        {"role": "developer", "content": "d"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x"}}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "No."}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
    ]


def test_one_assistant_turn_becomes_one_message() -> None:
    call = {"type": "function_call", "call_id": "call_7", "name": "f", "arguments": "{}"}
    made = messages(
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "I look."},
        call,
        {**call, "call_id": "8"},
        {"type": "function_call_output", "call_id": "call_7", "output": "sun"},
        {"type": "function_call_output", "call_id": "8", "output": [{"type": "input_text", "text": "rain"}]},
        {"role": "assistant", "content": "Sun."},
    )
    function = {"name": "f", "arguments": "{}"}
    assert made == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"type": "function", "id": "7", "function": function},
                {"type": "function", "id": "8", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "7", "content": "sun"},
        {"role": "tool", "tool_call_id": "8", "content": "rain"},
        {"role": "assistant", "content": "Sun."},
    ]


@pytest.mark.parametrize(
    ("given", "thought"),
    [
        ({"content": [{"type": "reasoning_text", "text": "a"}], "encrypted_content": pack_reasoning("b")}, "a"),
        ({"content": None, "encrypted_content": pack_reasoning("é b")}, "é b"),
        ({"encrypted_content": "somebody else's", "summary": [{"type": "summary_text", "text": "c"}]}, "c"),
        ({"encrypted_content": "Zm9yZWlnbg==", "summary": []}, None),
    ],
)
def test_reasoning_is_read_in_every_form(given: dict[str, Any], thought: str | None) -> None:
    made = messages({"type": "reasoning", **given}, {"role": "assistant", "content": "x"})
    assert made[0].get("reasoning_content") == thought


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, "'input' is required"),
        (5, "'input' must be a string or array"),
        (["x"], "input[0]"),
        ([{}], "Cannot determine type"),
        ([{"type": "odd_search_call", "id": "ws_1"}], "odd_search_call"),
        ([{"role": "robot", "content": "x"}], "input[0].role"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "input[1].content"),
        ([{"role": "user", "content": [{"type": "output_text", "text": "x"}]}], "input[0].content[0]"),
        ([{"role": "user", "content": ["x"]}], "input[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}], "input_file"),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], "image_url"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{"role": "assistant", "content": [{"type": "input_image"}]}], "output_text"),
        ([{"type": "function_call", "call_id": "1", "name": "f"}], "input[0].arguments"),
        ([{"type": "function_call_output", "call_id": "1", "output": 1}], "input[0].output"),
        ([{"type": "function_call_output", "output": ""}], "input[0].call_id"),
        ([{"type": "item_reference"}], "input[0].id"),
    ],
)
def test_wrong_input_is_named(value: object, named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_input(value)
    assert named in refused.value.message


@pytest.mark.parametrize(
    ("item", "call", "result"),
    [
        ({"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
         '[web_search_call] {"action": {"query": "x"}}', None),
        ({"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "*** Begin"},
         "[custom_tool_call apply_patch] *** Begin", None),
        ({"type": "custom_tool_call_output", "call_id": "c", "output": "Done"}, None, "[custom_tool_call_output] Done"),
        ({"type": "local_shell_call", "call_id": "c", "action": {"type": "exec", "command": ["ls"], "env": {}}},
         '[local_shell_call] {"action": {"command": ["ls"]}}', None),
        ({"type": "local_shell_call_output", "id": "c", "output": "a.txt"}, None, "[local_shell_call_output] a.txt"),
        ({"type": "mcp_call", "name": "echo", "server_label": "s", "arguments": "{}", "output": "yes", "error": None},
         '[mcp_call echo] {"server_label": "s", "arguments": "{}"}', "[mcp_call echo] yes"),
        ({"type": "code_interpreter_call", "code": "1+1", "outputs": [{"type": "logs", "logs": "2"}]},
         "[code_interpreter_call] 1+1", '[code_interpreter_call] {"outputs": [{"logs": "2"}]}'),
        ({"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "data:image/png;x"}},
         None, None),
        ({"type": "mcp_approval_request", "id": "a", "name": "rm", "server_label": "s", "arguments": "{}"},
         '[mcp_approval_request rm] {"server_label": "s", "arguments": "{}"}', None),
        ({"type": "mcp_approval_response", "approval_request_id": "a", "approve": False, "reason": "no"},
         None, '[mcp_approval_response] {"approve": false, "reason": "no"}'),
        ({"type": "mcp_approval_response", "approval_request_id": "a", "approve": False},
         None, '[mcp_approval_response] {"approve": false}'),
        ({"type": "tool_search_output", "call_id": "c", "execution": "client", "tools": [{"name": "get"}]},
         None, '[tool_search_output] {"execution": "client", "tools": [{"name": "get"}]}'),
        ({"type": "apply_patch_call_output", "call_id": "c", "status": "failed"},
         None, "[apply_patch_call_output] failed"),
        ({"type": "apply_patch_call_output", "call_id": "c", "status": "completed"}, None, None),
        ({"type": "compaction", "encrypted_content": "x"}, None, None),
    ],
)  # fmt: skip
def test_calls_of_another_server_are_text(item: dict[str, Any], call: str | None, result: str | None) -> None:
    made = messages({"role": "user", "content": "Go"}, item, {"role": "user", "content": "on"})
    said = [] if call is None else [{"role": "assistant", "content": call}]
    rest = "on" if result is None else [{"type": "text", "text": result}, {"type": "text", "text": "on"}]
    assert made == [{"role": "user", "content": "Go"}, *said, {"role": "user", "content": rest}]


def test_a_call_of_another_server_joins_the_turn() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "action": {"query": "x"}}
    made = messages({"role": "assistant", "content": "Wait."}, search, {"role": "assistant", "content": "Found."})
    (turn,) = made
    assert [part["text"] for part in turn["content"]] == [
        "Wait.",
        '[web_search_call] {"action": {"query": "x"}}',
        "Found.",
    ]


# -- the rest of a request -------------------------------------------------------------------------------------------


def test_fields_become_chat_fields() -> None:
    schema = {"type": "object"}
    asked = read_responses(
        {
            "input": "Hi",
            "max_output_tokens": 5,
            "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
            "include": ["message.output_text.logprobs"],
            "top_k": 3,
            "metadata": {"a": "b"},
            "store": False,
        }
    )
    assert asked.chat_body(asked.items) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        "logprobs": True,
        "top_logprobs": 1,
        "top_k": 3,
    }
    assert not asked.stores
    assert asked.form.n_top_logprobs == 0
    assert asked.form.shown["metadata"] == {"a": "b"}


FLAT = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}
NESTED = {"type": "function", "function": {name: value for name, value in FLAT.items() if name != "type"}}
G = {**FLAT, "name": "g"}
HOSTED = {"type": "web_search"}


def test_only_functions_become_tools() -> None:
    asked = read_responses({"input": "x", "tools": [FLAT, HOSTED, NESTED]})
    assert asked.chat["tools"] == [NESTED, NESTED]
    assert asked.form.shown["tools"] == [FLAT, HOSTED, FLAT]
    assert "tools" not in read_responses({"input": "x", "tools": [HOSTED]}).chat


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        ("required", "required", ["f", "g"]),
        ({"type": "function", "name": "g"}, {"type": "function", "function": {"name": "g"}}, ["f", "g"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
            "required",
            ["g"],
        ),
    ],
)
def test_tool_choice(choice: object, expected: object, names: list[str]) -> None:
    asked = read_responses({"input": "x", "tools": [FLAT, G], "tool_choice": choice})
    assert asked.chat["tool_choice"] == expected
    assert [tool["function"]["name"] for tool in asked.chat["tools"]] == names


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"n": 2}, "'n'"),
        ({"truncation": "much"}, "truncation"),
        ({"include": "all"}, "include"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"instructions": ["x"]}, "instructions"),
        ({"store": "yes"}, "store"),
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"max_output_tokens": "8"}, "max_output_tokens"),
        ({"reasoning": "high"}, "reasoning"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"tools": "f"}, "tools"),
        ({"tools": [HOSTED], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [FLAT], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_responses({"input": "x", **fields})
    assert named in refused.value.message


# -- items out -------------------------------------------------------------------------------------------------------

texts = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3)


@st.composite
def turns(draw: st.DrawFn) -> list[Delta]:
    """Generate a model's turn: reasoning, then content, then calls; each part is optional."""
    deltas: list[Delta] = [ReasoningDelta(text) for text in draw(texts | st.just([]))]
    deltas += [ContentDelta(text) for text in draw(texts | st.just([]))]
    for index in range(draw(st.integers(0, 3))):
        deltas.append(ToolCallBegun(index, f"id{index}", "f"))
        deltas += [ToolCallArguments(index, text) for text in draw(texts | st.just([]))]
    return deltas


@settings(deadline=None)
@given(turns())
def test_output_items_sent_back_become_the_same_message(deltas: list[Delta]) -> None:
    said, output = ParsedMessage(), OutputItems(TOKEN)
    said.add(deltas)
    for delta in deltas:
        output.add(delta)
    output.end()
    (message,) = messages_of(read_input(output.items), None) or [{"content": ""}]
    assert message["content"] == said.content
    assert message.get("reasoning_content", "") == said.reasoning
    calls = [(call["id"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    assert calls == [(call.id, call.arguments) for call in said.calls]


def dialect(reply: ReplyFormat = PLAIN, **fields: Any) -> OpenAIResponses:
    asked = read_responses({"input": "x", **fields})
    answer = AnswerInfo(
        CompletionParams(stream=True, reply=reply), "tiny", "b0", [[1]], str, len, id=f"resp_{TOKEN}", created=7
    )
    return OpenAIResponses(answer, asked.form)


class Script:
    """A reply format and parser that returns the script's deltas, one for each character of text."""

    def __init__(self, deltas: Sequence[Delta]) -> None:
        self.deltas = deltas
        self.opened = list(deltas[:1])
        self.shows_opening = True
        self._left = list(deltas[1:])

    def parser(self) -> Script:
        return Script(self.deltas)

    def add(self, text: str) -> list[Delta]:
        said, self._left = self._left[: len(text)], self._left[len(text) :]
        return said

    def end(self, *, truncated: bool, follows: str) -> list[Delta]:
        return self._left


@st.composite
def any_turns(draw: st.DrawFn) -> list[Delta]:
    """Generate reasoning, content and calls in any order: models do not write this, but a parser may return it."""
    deltas: list[Delta] = []
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(("reasoning", "content", "call")))
        some = draw(texts)
        if kind == "call":
            n = sum(isinstance(delta, ToolCallBegun) for delta in deltas)
            deltas += [ToolCallBegun(n, f"id{index}", "f"), *(ToolCallArguments(n, text) for text in some)]
        else:
            deltas += [ReasoningDelta(text) if kind == "reasoning" else ContentDelta(text) for text in some]
    return deltas


TIMINGS = Timings(1, 2, 1.0, 3, 1.0)


@settings(deadline=None)
@given(any_turns(), st.lists(st.integers(0, 4), max_size=6), st.sampled_from(("limit", "eos")), st.booleans())
def test_a_stream_and_the_whole_response_agree(
    deltas: list[Delta], cuts: list[int], stop: Literal["limit", "eos"], summarizes: bool
) -> None:
    script: Any = Script(deltas)
    fields: dict[str, Any] = {"reasoning": {"summary": "auto"}} if summarizes else {}
    last = Finished(0, 0, "x" * len(deltas), (), stop, "", 3, 3, 6, False, False, TIMINGS)
    made = dialect(script, **fields)
    data = made.begun(0, Begun(0))
    for n in cuts:
        data += made.piece(0, Piece(0, "x" * n, (1,), 1, 3))
    streamed = check_stream(read_stream(data + made.finished(0, last) + made.end()))
    whole = Response.model_validate(dialect(script, **fields).full_body([last]), strict=True)
    assert whole.output == streamed.output
    assert whole.status == streamed.status == ("incomplete" if stop == "limit" else "completed")
    assert made.response["output"] == streamed.model_dump(mode="json", exclude_unset=True)["output"]


def test_a_failed_stream_ends_with_response_failed() -> None:
    made = dialect()
    data = made.begun(0, Begun(0)) + made.failed(ServerFault("out of memory"))
    response = check_stream(read_stream(data), "response.failed")
    assert response.status == "failed"
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("server_error", "out of memory")


def test_only_the_contents_probabilities_are_selected() -> None:
    probs = [TokenProbs(TokenProb(1, piece, -1.0), ()) for piece in (b"<think>", b"a b", b"</think>", b" a", b" b")]
    assert [entry.chosen.piece for entry in probs_of("a b", probs)] == [b" a", b" b"]
    assert list(probs_of("", probs)) == []
    assert list(probs_of("something else", probs)) == probs
