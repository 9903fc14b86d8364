"""The reasoning budget: when reasoning ends, which text is inserted then, and how a control request ends it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import chat_templates
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.messages import Thinking
from llama_corral.worker.engine.sampling.thinking_budget import ThinkingBudget
from programs import Program, Programs, wait_until

PIECES = [
    b"<think>",
    b"</think>",
    b"a",
    b"b",
    b"<th",
    b"ink>",
    b"</",
    b"think>",
    b"\xe6",
    b"\x97",
    b"\xa5",
    b"",
    b"call:",
]
START, END, A, B = 0, 1, 2, 3
MESSAGE, CALL = 100, 12
FORCED = [MESSAGE, END]


def piece(token: int) -> bytes:
    return b"Enough." if token == MESSAGE else PIECES[token]


def budget(limit: int, opening: Sequence[int] = (), start: str = "<think>") -> ThinkingBudget:
    return ThinkingBudget(Thinking(start, ("</think>", "call:"), budget=limit), piece, FORCED, opening)


def said(budget: ThinkingBudget, wanted: Sequence[int]) -> list[int]:
    """Return the tokens generated when the model would generate `wanted`: forced tokens are inserted."""
    tokens = []
    for token in wanted:
        while (forced := budget.forced) is not None:
            tokens.append(forced)
            budget.accept(forced)
        tokens.append(token)
        budget.accept(token)
    return tokens


def test_thinking_ends_when_the_budget_is_used_up() -> None:
    assert said(budget(2), [A, START, A, B, A]) == [A, START, A, B, *FORCED, A]
    assert said(budget(2, [START]), [A, B, A, A]) == [A, B, *FORCED, A, A]
    assert said(budget(2, start=""), [A, B, A]) == [A, B, *FORCED, A]
    assert said(budget(0), [A, START, A]) == [A, START, *FORCED, A]
    assert budget(0, [START]).forced == MESSAGE
    assert budget(0, [START, END]).forced is None


def test_reasoning_in_the_prompt_counts_towards_the_budget() -> None:
    assert said(budget(3, [START, A, B]), [A, B]) == [A, *FORCED, B]
    assert budget(2, [START, A, B]).forced == MESSAGE


def test_reasoning_within_the_budget_is_not_changed_and_the_next_has_the_full_budget() -> None:
    once = [START, A, END, B, B, B]
    assert said(budget(2), [*once, START, A, B, A]) == [*once, START, A, B, *FORCED, A]
    called = [START, A, CALL, B, B]
    assert said(budget(2), called) == called


def test_marks_may_be_split_into_any_tokens() -> None:
    assert said(budget(2), [4, 5, A, B, A]) == [4, 5, A, B, *FORCED, A]
    assert said(budget(3), [4, 5, A, 6, 7, B, B]) == [4, 5, A, 6, 7, B, B]


def test_an_incomplete_character_is_completed_before_the_forced_end() -> None:
    assert said(budget(2), [START, A, 8, 9, 10, B]) == [START, A, 8, 9, 10, *FORCED, B]
    assert said(budget(1), [START, 8, END, B]) == [START, 8, END, B]


def test_a_forced_end_has_no_effect_outside_of_reasoning() -> None:
    outside = budget(-1)
    outside.end_thoughts()
    assert outside.forced is None
    thinks = budget(-1, [START])
    assert said(thinks, [A] * 50) == [A] * 50
    thinks.end_thoughts()
    thinks.end_thoughts()
    assert said(thinks, [A]) == [*FORCED, A]


@given(st.lists(st.sampled_from([START, END, CALL, A])), st.integers(0, 4))
def test_reasoning_is_never_longer_than_its_budget(wanted: list[int], limit: int) -> None:
    tokens = said(budget(limit), wanted)
    n: int | None = None  # reasoning tokens so far; None: outside of reasoning
    for token in tokens:
        if token in (END, CALL):
            n = None
        elif token == START and n is None:
            n = 0
        elif token != MESSAGE and n is not None:
            n += 1
            assert n <= limit
    assert [token for token in tokens if token in (A, START, CALL)] == [token for token in wanted if token != END]


# -- over HTTP ---------------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "Question"}
ENOUGH = " That is enough."
OPTIONS = ("--reasoning-budget", "9", "--reasoning-budget-message", ENOUGH, "--parallel", "2", "--ctx-size", "2048")


@pytest.fixture(scope="module")
def thinker(module_programs: Programs) -> Iterator[Program]:
    program = module_programs.worker_with_template(chat_templates.THINKING, *OPTIONS)
    yield program
    program.stop()


def asked(**more: Any) -> dict[str, Any]:
    return {"messages": [USER], "max_tokens": 60, "seed": 1, "temperature": 0.0, **more}


def message(program: Program, **more: Any) -> Any:
    answer = program.client.post("/v1/chat/completions", json=asked(**more))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]


def n_tokens(program: Program, text: str) -> int:
    body = {"content": text, "add_special": False}
    return len(program.client.post("/tokenize", json=body).json()["tokens"])


def test_the_server_limits_reasoning(thinker: Program) -> None:
    limited = message(thinker)
    thought = limited["reasoning_content"]
    assert thought.endswith(ENOUGH.strip())
    free = message(thinker, reasoning_budget_tokens=2**31 - 1)
    assert not free["content"]
    assert free["reasoning_content"].startswith(thought.removesuffix(ENOUGH.strip()).strip())
    assert limited["content"]


@pytest.mark.parametrize("name", ["reasoning_budget_tokens", "thinking_budget_tokens"])
def test_a_request_has_its_own_limit_and_message(thinker: Program, name: str) -> None:
    for sampling in ({}, {"temperature": 1.2, "repeat_penalty": 1.2}, {"mirostat": 2, "temperature": 1.0}):
        said = message(thinker, **{name: 4, "reasoning_budget_message": "Stop"}, **sampling)
        assert said["reasoning_content"].endswith("Stop"), said
        assert said["content"]
        assert n_tokens(thinker, said["reasoning_content"].removesuffix("Stop")) <= 5


def test_a_budget_of_zero_means_no_reasoning(thinker: Program) -> None:
    said = message(thinker, reasoning_budget_tokens=0, reasoning_budget_message="")
    assert "reasoning_content" not in said
    assert said["content"]
    off = message(thinker, chat_template_kwargs={"enable_thinking": False})
    assert "reasoning_content" not in off  # and nothing is inserted into an answer without reasoning
    assert ENOUGH.strip() not in off["content"]


def test_json_follows_reasoning_that_was_cut_off(thinker: Program) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    said = message(thinker, response_format=form, max_tokens=200)
    assert said["reasoning_content"].endswith(ENOUGH.strip())
    assert isinstance(json.loads(said["content"])["on"], bool)


def test_a_required_call_follows_reasoning_that_was_cut_off(thinker: Program) -> None:
    parameters = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "switch", "parameters": parameters}}
    said = message(thinker, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=300)
    assert said["reasoning_content"].endswith(ENOUGH.strip())
    assert said["tool_calls"][0]["function"]["name"] == "switch"


def test_a_grammar_takes_priority_over_the_budget_message(thinker: Program) -> None:
    said = message(thinker, grammar='root ::= "x"{30} "</think>" "y"', max_tokens=100)
    assert (said["reasoning_content"], said["content"]) == ("x" * 30, "y")


def test_a_completion_request_sets_its_own_marks(thinker: Program) -> None:
    marks = {"reasoning_budget_start_tag": "[", "reasoning_budget_end_tags": ["]"]}
    body = {
        "prompt": "Say [",
        "generation_prompt": "[",
        "n_predict": 30,
        "temperature": 0.0,
        "reasoning_budget_tokens": 3,
    }
    text = thinker.client.post("/completion", json={**body, **marks, "reasoning_budget_message": " Stop"}).json()[
        "content"
    ]
    assert " Stop" in text[: text.index("]")]
    one = {"reasoning_budget_start_tag": "[", "reasoning_budget_end_tag": "]", "reasoning_budget_message": ""}
    text = thinker.client.post("/completion", json={**body, **one}).json()["content"]
    assert "]" in text[:40]


@pytest.mark.parametrize("value", [-2, "5", 2**31])
def test_a_wrong_budget_is_refused(thinker: Program, value: object) -> None:
    answer = thinker.client.post("/v1/chat/completions", json=asked(reasoning_budget_tokens=value))
    assert answer.status_code == 400
    assert "reasoning_budget_tokens" in answer.json()["error"]["message"]


def test_a_control_request_ends_reasoning(thinker: Program) -> None:
    unlimited: dict[str, Any] = {"reasoning_budget_tokens": 2**31 - 1, "max_tokens": 600, "stream": True}
    body = asked(reasoning_control=True, ignore_eos=True, n=2, **unlimited)
    said = {0: {"content": "", "reasoning_content": ""}, 1: {"content": "", "reasoning_content": ""}}
    with thinker.client.stream("POST", "/v1/chat/completions", json=body) as response:
        ended = False
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            for choice in chunk["choices"]:
                for name, text in choice["delta"].items():
                    if name in said[choice["index"]] and text:
                        said[choice["index"]][name] += text
            if not ended and all(choice["reasoning_content"] for choice in said.values()):
                ended = True
                assert control(thinker, chunk["id"]) == {"success": True}
                id = chunk["id"]
    for choice in said.values():
        assert choice["reasoning_content"].endswith(ENOUGH.strip())
        assert choice["content"]
    gone = {"success": False, "message": "no active completion for this id"}
    wait_until(lambda: control(thinker, id) == gone, "the completion to end")


def control(program: Program, id: str) -> Any:
    return program.client.post("/v1/chat/completions/control", json={"id": id, "action": "reasoning_end"}).json()


def test_the_router_forwards_a_control_request(programs: Programs, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(chat_templates.THINKING)
    presets = (
        f"[m]\nmodel = {{models}}/tiny-llama-long.gguf\nctx-size = 16384\nthreads = 1\nchat-template-file = {file}\n"
    )
    gateway = programs.gateway(presets=presets)
    body = asked(model="m", reasoning_control=True, ignore_eos=True, stream=True, max_tokens=-1)
    content = ""
    with gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk["choices"][0]["delta"].get("reasoning_content"):
                word = {"model": "m", "id": chunk["id"], "action": "reasoning_end"}
                answer = gateway.client.post("/v1/chat/completions/control", json=word)
                assert answer.json() == {"success": True}
            content += chunk["choices"][0]["delta"].get("content") or ""
            if content:
                break
