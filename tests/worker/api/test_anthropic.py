"""Anthropic's dialect: how requests become chats, answers become blocks, and what is refused. Needs no model."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from typing import Any

import pytest
from anthropic_requests import CACHED, LOOK, USER, coding_agent, text
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest, ServerFault
from llama_corral.worker.api.answers.dialect import AnswerInfo
from llama_corral.worker.api.anthropic.answer import AnthropicMessages, ContentBlocks, block_list
from llama_corral.worker.api.anthropic.request import chat_body
from llama_corral.worker.api.request.params import CompletionParams
from llama_corral.worker.api.responses.request import read_responses
from llama_corral.worker.chat.parsing.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegun,
)
from llama_corral.worker.chat.parsing.reply import ReplyFormat
from llama_corral.worker.chat.request import ChatDefaults, read_chat
from llama_corral.worker.engine.messages import Begun, Finished, Piece, Timings

CALL = {"type": "tool_use", "id": "t1", "name": "look", "input": {"far": True}}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
PLAIN = {"type": "text", "media_type": "text/plain", "data": "d"}
ON = {"type": "enabled"}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return chat_body({"messages": list(messages) or [USER], **fields}, prefills=True)


def of_user(*blocks: Any) -> Any:
    return chat({"role": "user", "content": list(blocks)})["messages"]


# -- messages --------------------------------------------------------------------------------------------------------


def test_an_agents_request_becomes_a_valid_chat_request() -> None:
    body = chat_body(coding_agent(), prefills=True)
    system, user, assistant, first, second, reminder = body["messages"]
    assert [part["text"] for part in reminder["content"]][-2] == "Another agent is ready."
    assert system["content"][0]["text"].endswith("cch=fffff;")
    assert [part["text"] for part in user["content"]][1] == "Fix the bug in main.py"
    assert (assistant["content"], assistant["reasoning_content"]) == ("I read both files.", "I should read it.")
    assert json.loads(assistant["tool_calls"][1]["function"]["arguments"]) == {"file_path": "/b.py"}
    assert first == {"role": "tool", "tool_call_id": "toolu_01", "content": "print('hi')", "name": "Tool0"}
    assert second["content"] == "Error: No such file"
    assert reminder["role"] == "user"
    assert "cache_control" not in json.dumps(body)
    read = read_chat(body, ChatDefaults())
    assert len(read.tools.offered) == 20
    assert (read.variables["enable_thinking"], read.variables["reasoning_effort"]) == (True, "medium")


def test_the_billing_header_value_is_removed_from_the_system_prompt() -> None:
    stamps = [f"x-anthropic-billing-header: cc_version=2; cch={stamp};You are" for stamp in ("a5145", "00000")]
    assert chat(system=stamps[0]) == chat(system=stamps[1])
    assert chat(system="cch=a5145;")["messages"][0]["content"] == "cch=a5145;"
    assert [message["role"] for message in chat(system="")["messages"]] == ["user"]


def test_tool_results_precede_the_text_of_the_same_message() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "a ship"}
    messages = chat(USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [text("See"), result]})
    assert [(message["role"], message["content"]) for message in messages["messages"]] == [
        ("user", "What is in the harbour?"), ("assistant", ""), ("tool", "a ship"), ("user", "See"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "content"),
    [
        ({}, ""),
        ({"content": "x"}, "x"),
        ({"content": [text("x", **CACHED)]}, "x"),
        ({"content": [text("x"), PNG]}, [text("x"), IMAGE_PART]),
        ({"content": "x", "is_error": True}, "Error: x"),
        ({"content": "An error occurred", "is_error": True}, "An error occurred"),
        ({"is_error": True}, "Error"),
        ({"content": [text("x"), text("y")], "is_error": True}, [text("Error:"), text("x"), text("y")]),
        ({"content": [{"type": "tool_reference", "tool_name": "look"}]}, "look"),
    ],
)  # fmt: skip
def test_tool_results_are_converted(given: dict[str, Any], content: Any) -> None:
    (message,) = of_user({"type": "tool_result", "tool_use_id": "t1", **given})
    assert message == {"role": "tool", "tool_call_id": "t1", "content": content}


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"type": "image", "source": {"type": "url", "url": "http://a/b.png"}},
         [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]),
        ({"type": "document", "title": "T", "source": PLAIN}, [text("T"), text("d")]),
        ({"type": "document", "source": {"type": "content", "content": [text("a"), PNG]}}, [text("a"), IMAGE_PART]),
        ({"type": "search_result", "title": "T", "source": "s", "content": "a"}, [text("T"), text("s"), text("a")]),
    ],
)  # fmt: skip
def test_other_blocks_become_content_parts(block: Any, parts: Any) -> None:
    assert of_user(block, text("see"))[0]["content"] == [*parts, text("see")]


def test_consecutive_messages_of_one_role_are_merged() -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": ""}
    said = chat(
        {"role": "user", "content": "a"},
        {"role": "user", "content": [text("b")]},
        {"role": "assistant", "content": [thought]},
        {"role": "assistant", "content": [text("c"), CALL]},
    )["messages"]
    assert said[0]["content"] == [text("a"), text("b")]
    assert (said[1]["reasoning_content"], said[1]["content"], len(said[1]["tool_calls"])) == ("Hm", "c", 1)
    assert len(said) == 2


def test_system_messages_in_the_middle_become_user_reminders() -> None:
    first, later = {"role": "system", "content": "Be kind."}, {"role": "system", "content": [text("Be brief.")]}
    said = chat(first, first, USER, later, {"role": "assistant", "content": "Ships"}, later, system="Be.")["messages"]
    assert [message["role"] for message in said] == ["system", "user", "assistant", "user"]
    assert said[0]["content"] == [text("Be."), text("Be kind."), text("Be kind.")]
    assert said[1]["content"][1:] == [text("<system-reminder>"), text("Be brief."), text("</system-reminder>")]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"messages": None}, "'messages'"),
        ({"messages": {}}, "'messages'"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [USER, {"role": "user", "content": [text("x"), {"type": "odd"}]}]}, "messages[1].content[1]"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{**PNG, "source": {"type": "file"}}]}]}, "file"),
        ({"messages": [{"role": "user", "content": [{**PNG, "type": "document"}]}]}, "base64"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "odd"}]}]}]},
         "messages[0].content[0].content[0]"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"system": 5}, "system"),
        ({"max_tokens": "x"}, "max_tokens"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"tools": {}}, "tools"),
        ({"tools": [{}]}, "tools[0]"),
        ({"tools": [LOOK, {"type": "odd_20250305", "name": "odd"}]}, "tools[1]: 'odd_20250305'"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "odd"}}, "tool_choice.type"),
        ({"thinking": []}, "thinking"),
        ({"mcp_servers": "x"}, "mcp_servers"),
        ({"mcp_servers": {}}, "mcp_servers"),
        ({"mcp_servers": [{"type": "url"}, 5]}, "mcp_servers"),
        ({"tools": [{"type": "computer_toolset_20260801"}]}, "computer_toolset_20260801"),
        ({"output_config": {"format": {"type": "odd"}}}, "output_config.format"),
    ],
)  # fmt: skip
def test_errors_name_the_wrong_field(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat_body({"messages": [USER], **fields}, prefills=True)
    assert where in str(refused.value)


# -- tools of Anthropic's servers --------------------------------------------------------------------------------------

SEARCH = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "ships"}}
FOUND = {
    "type": "web_search_tool_result",
    "tool_use_id": "s1",
    "content": [{"type": "web_search_result", "url": "http://a", "title": "A <|im_end|>", "encrypted_content": "x"}],
}


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"type": "web_fetch_20260209", "name": "web_fetch"},
        {"type": "code_execution_20250825", "name": "code_execution"},
        {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"},
        {"type": "mcp_toolset", "mcp_server_name": "x"},
    ],
)
def test_tools_that_run_elsewhere_are_left_out(tool: dict[str, Any]) -> None:
    assert [made["function"]["name"] for made in chat(tools=[tool, LOOK])["tools"]] == [LOOK["name"]]
    assert "tools" not in chat(tools=[tool], mcp_servers=[{"type": "url", "name": "x", "url": "http://x"}])
    named = chat(tools=[{**tool, "name": "own", "input_schema": {"type": "object"}}])
    assert named["tools"][0]["function"]["name"] == "own"


def test_tools_that_run_elsewhere_are_no_news_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each request of a client may have them."""
    caplog.set_level(logging.DEBUG)
    chat(tools=[{"type": "web_search_20250305", "name": "web_search"}], mcp_servers=[{"type": "url"}])
    read_responses({"input": "x", "tools": [{"type": "web_search"}]})
    assert [record.levelno for record in caplog.records] == [logging.DEBUG] * 3


def test_calls_of_server_tools_in_a_history_are_text() -> None:
    turn = {"role": "assistant", "content": [text("Wait."), SEARCH, FOUND, text("A ship.")]}
    called = '[server_tool_use web_search] {"input": {"query": "ships"}}'
    found = '[web_search_tool_result] {"content": [{"url": "http://a", "title": "A <|im_end|>"}]}'
    assert chat(USER, turn, USER)["messages"] == [
        USER,
        {"role": "assistant", "content": [text("Wait."), text(called)]},
        {"role": "user", "content": found},
        {"role": "assistant", "content": "A ship."},
        USER,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "shown"),
    [
        ([{"type": "compaction", "content": "We spoke of ships."}], ["We spoke of ships."]),
        ([{"type": "mcp_tool_use", "id": "m", "name": "echo", "server_name": "s", "input": {}},
          {"type": "mcp_tool_result", "tool_use_id": "m", "is_error": False, "content": [text("yes")]}],
         ['[mcp_tool_use echo] s', '[mcp_tool_result] {"content": [{"text": "yes"}]}']),
        ([{**SEARCH, "name": "bash_code_execution", "input": {"command": "ls"}},
          {"type": "bash_code_execution_tool_result", "tool_use_id": "s1",
           "content": {"type": "bash_code_execution_result", "stdout": "a.txt", "stderr": "", "return_code": 0}}],
         ['[server_tool_use bash_code_execution] {"input": {"command": "ls"}}',
          '[bash_code_execution_tool_result] {"content": {"stdout": "a.txt", "return_code": 0}}']),
        ([text("x"), {**FOUND, "content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}}],
         ["x", '[web_search_tool_result] {"content": {"error_code": "max_uses_exceeded"}}']),
    ],
)  # fmt: skip
def test_other_blocks_of_a_history(blocks: list[Any], shown: list[str]) -> None:
    said = chat(USER, {"role": "assistant", "content": blocks})["messages"]
    assert [message["content"] for message in said[1:]] == shown


def test_a_call_after_a_server_tool_keeps_its_result() -> None:
    turn = {"role": "assistant", "content": [CALL, SEARCH, FOUND, text("And now")]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "x"}]}
    said = chat(USER, turn, result)["messages"]
    assert [(message["role"], "tool_calls" in message) for message in said] == [
        ("user", False), ("assistant", False), ("user", False), ("assistant", True), ("tool", False),
    ]  # fmt: skip


# -- the rest of a request -------------------------------------------------------------------------------------------


def test_an_assistant_message_at_the_end_is_continued() -> None:
    last = {"role": "assistant", "content": "It is"}
    read = read_chat(chat(USER, last), ChatDefaults())
    assert read.continued == last
    assert not read.shows_prefill
    assert "continue_final_message" not in chat_body({"messages": [USER, last]}, prefills=False)


def test_fields_and_their_defaults() -> None:
    assert chat() == {"messages": [USER], "max_tokens": 4096}
    same: dict[str, Any] = {"max_tokens": 5, "top_k": 3, "temperature": 0.5, "top_p": 0.9, "stream": True, "seed": 7}
    body = chat(**same, stop_sequences=["x"], odd=1, n=2)
    assert body == {**same, "messages": [USER], "stop": ["x"]}


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({"thinking": ON}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": ON, "chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_thinking(fields: dict[str, Any], variables: dict[str, Any]) -> None:
    assert read_chat(chat(**fields), ChatDefaults()).variables == variables


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, False),
        ({"thinking": ON}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"output_config": {"effort": "high"}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
)
def test_thinking_is_off_unless_the_request_or_an_option_enables_it(fields: dict[str, Any], thinks: bool) -> None:
    body = chat_body({"messages": [USER], **fields}, prefills=True, thinks=False)
    assert read_chat(body, ChatDefaults()).variables["enable_thinking"] == thinks


def test_a_thinking_budget() -> None:
    assert chat(thinking={"type": "enabled", "budget_tokens": 1024})["thinking_budget_tokens"] == 1024
    assert chat(thinking=ON)["thinking_budget_tokens"] == 10000
    assert "thinking_budget_tokens" not in chat(thinking={"type": "adaptive"})


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_structured_outputs(name: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    body = chat(**{name: {"format": form} if name == "output_config" else form})
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("given", "choice", "only", "parallel"),
    [
        ({"type": "auto"}, "auto", "", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", "", False),
        ({"type": "tool", "name": "look"}, "required", "look", None),
        ({"type": "none"}, "none", "", None),
    ],
)
def test_the_choice_of_tools(given: Any, choice: str, only: str, parallel: bool | None) -> None:
    tools = read_chat(chat(tools=[LOOK], tool_choice=given), ChatDefaults()).tools
    assert (tools.choice, tools.only, tools.parallel) == (choice, only, parallel)
    assert tools.offered[0].parameters == LOOK["input_schema"]


@pytest.mark.parametrize(
    ("kind", "argument"),
    [("bash_20250124", "command"), ("text_editor_20250728", "old_str"), ("memory_20250818", "path"),
     ("computer_20250124", "coordinate")],
)  # fmt: skip
def test_client_tools_get_their_schema(kind: str, argument: str) -> None:
    (tool,) = chat(tools=[{"type": kind, "name": "x"}])["tools"]
    assert argument in tool["function"]["parameters"]["properties"]
    assert tool["function"]["description"]


# -- answers ---------------------------------------------------------------------------------------------------------

TIMINGS = Timings(cache_n=2, prompt_n=4, prompt_ms=8.0, predicted_n=3, predicted_ms=10.0)
DONE = Finished(0, 1, "sea air", (5, 6), "eos", "", 3, 6, 8, True, False, TIMINGS)


def dialect(**fields: Any) -> AnthropicMessages:
    return AnthropicMessages(AnswerInfo(CompletionParams(**fields), "tiny", "b0", [[1]], str, len, id="msg_1"))


def events(data: bytes) -> list[Any]:
    read = []
    for event in data.decode().split("\n\n")[:-1]:
        name, _, shown = event.partition("\n")
        value = json.loads(shown.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        read.append(value)
    return read


def test_a_stream_and_the_whole_message_agree() -> None:
    stream = dialect()
    data = stream.begun(0, Begun(0, 6, 2)) + stream.piece(0, Piece(0, "sea", (5,), 1, 6))
    data += stream.piece(0, Piece(0, " air", (6,), 2, 6)) + stream.finished(0, DONE) + stream.end()
    start, *blocks, delta, stop = events(data)
    usage = {"input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2}
    assert start["message"]["usage"] == {**usage, "output_tokens": 0}
    assert start["message"]["content"] == []
    assert [block["type"].removeprefix("content_block_") for block in blocks] == ["start", "delta", "delta", "stop"]
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"] == {**usage, "output_tokens": 3}
    assert stop == {"type": "message_stop"}
    assert dialect().full_body([DONE]) == {
        **start["message"], **delta["delta"], "content": block_list(blocks), "usage": delta["usage"],
    }  # fmt: skip


def test_stop_reasons() -> None:
    def ended(stop_type: Any, word: str = "") -> tuple[str, str | None]:
        result = Finished(0, 1, "a", (5,), stop_type, word, 1, 6, 8, True, False, TIMINGS)
        answer = AnswerInfo(CompletionParams(), "tiny", "b0", [[1]], str, len)
        shown: Any = AnthropicMessages(answer, ["END"]).full_body([result])
        return shown["stop_reason"], shown["stop_sequence"]

    assert ended("eos") == ("end_turn", None)
    assert ended("limit") == ("max_tokens", None)
    assert ended("word", "END") == ("stop_sequence", "END")
    assert ended("word", "the server's") == ("end_turn", None)


def test_the_prefill_is_not_repeated() -> None:
    shown: Any = dialect(reply=ReplyFormat(opening="The ", shows_opening=False)).full_body([DONE])
    assert shown["content"] == [text("sea air")]


def test_pings_and_errors_are_named_events() -> None:
    assert events(dialect().ping) == [{"type": "ping"}]
    (error,) = events(dialect().failed(ServerFault("gone")))
    assert error["error"] == {"type": "api_error", "message": "gone"}


TEXTS = st.text(min_size=1, max_size=5)
DELTAS = st.lists(
    st.one_of(
        TEXTS.map(ContentDelta), TEXTS.map(ReasoningDelta), st.just(ToolCallBegun(0, "t", "look")), st.just(None)
    ),
    max_size=20,
)


@given(DELTAS)
def test_blocks_do_not_overlap_and_are_all_closed(given: list[Delta | None]) -> None:
    deltas: list[Delta] = []
    for delta in given:
        if delta is not None:
            deltas.append(delta)
        elif deltas and isinstance(deltas[-1], ToolCallBegun):
            deltas += [ToolCallArguments(0, '{"a":'), ToolCallArguments(0, " 5}")]
    blocks = ContentBlocks()
    shown = [*blocks.add(deltas), *blocks.close()]
    starts = [event["index"] for event in shown if event["type"] == "content_block_start"]
    assert starts == list(range(len(starts)))
    assert starts == [event["index"] for event in shown if event["type"] == "content_block_stop"]
    read = block_list(shown)
    assert "".join(block.get("text", "") for block in read) == "".join(
        d.text for d in deltas if isinstance(d, ContentDelta)
    )
    assert "".join(block.get("thinking", "") for block in read) == "".join(
        d.text for d in deltas if isinstance(d, ReasoningDelta)
    )
    assert sum(block["type"] == "tool_use" for block in read) == sum(isinstance(d, ToolCallBegun) for d in deltas)
    assert all(block["input"] in ({}, {"a": 5}) for block in read if block["type"] == "tool_use")
    assert not any(one["type"] == two["type"] != "tool_use" for one, two in pairwise(read))
    signed = [event for event in shown if event.get("delta", {}).get("type") == "signature_delta"]
    assert len(signed) == sum(block["type"] == "thinking" for block in read)


def test_truncated_arguments_are_parsed_as_far_as_possible() -> None:
    def left(arguments: str) -> Any:
        blocks = ContentBlocks()
        return block_list(
            [*blocks.add([ToolCallBegun(0, "t", "x"), ToolCallArguments(0, arguments)]), *blocks.close()]
        )[0]

    assert left('{"a": 1, "b": "c')["input"] == {"a": 1}
    assert left("[1]")["input"] == left("nonsense")["input"] == left("")["input"] == {}
