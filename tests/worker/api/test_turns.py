"""Schemas and templates that take long delay neither those that do not, nor others once their client has left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.api.completions import render_chat
from llama_corral.worker.api.request.params import CompletionParams, params_of
from llama_corral.worker.api.request.turns import in_turn
from llama_corral.worker.chat.prompt import ChatFormat
from llama_corral.worker.chat.request import ChatDefaults, read_chat
from llama_corral.worker.grammar.converter import schema_grammar
from llama_corral.worker.grammar.work import Budget, TakesLong, TooMuchWork

USER = [{"role": "user", "content": "hi"}]
TREE: dict[str, Any] = {
    "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)} | {"d30": {}},
    "$ref": "#/$defs/d0",
    "enum": [1],
}
PATTERNS = {"properties": {f"p{i}": {"pattern": f"^(a{{0,20}}b?){{0,{i + 9}}}$", "maxLength": 40} for i in range(60)}}
HONEST = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": [1, 2, 3]}}}
SLOW = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}"
TEMPLATE = "{% for m in messages %}{{ m.role }}{% if m.content == 'slow' %}" + SLOW + "{% endif %}{% endfor %}"


def tools(schema: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}


def formatted(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_object", "schema": schema}}


async def chat(**body: Any) -> object:
    worker: Any = SimpleNamespace(model=SimpleNamespace(chat=FORM), settings=Settings.of(special_in_messages=True))
    loaded: Any = SimpleNamespace(apply_builtin_template=None, vocab=None, n_ctx=512)
    return await render_chat(worker, loaded, read_chat({"messages": USER, **body}, ChatDefaults()))


FORM = ChatFormat(TEMPLATE)


async def completion(**body: Any) -> object:
    async def prepare_for(sampling: object) -> object:
        return sampling

    vocab = SimpleNamespace(n_vocab=10, eog_tokens=(), tokenize=lambda *_: [1], surrounded=list)
    loaded: Any = SimpleNamespace(vocab=vocab, info=SimpleNamespace(n_slots=1), prepare_for=prepare_for)
    return await params_of(body, CompletionParams(), loaded)


@pytest.mark.parametrize(
    ("ask", "hostile", "honest"),
    [
        (chat, formatted(TREE), formatted(HONEST)),
        (chat, formatted(PATTERNS), tools(HONEST)),
        (chat, {"messages": [{"role": "user", "content": "slow"}]}, formatted(HONEST)),
        (completion, {"json_schema": TREE}, {"json_schema": HONEST}),
        (completion, {"json_schema": PATTERNS}, {"json_schema": HONEST}),
    ],
)
async def test_an_honest_schema_does_not_wait_for_hostile_ones(ask: Any, hostile: Any, honest: Any) -> None:
    attack = [asyncio.ensure_future(ask(**hostile)) for _ in range(4)]
    try:
        await asyncio.sleep(0)  # they are in the queue now
        await ask(**honest)
        assert not any(task.done() for task in attack)
    finally:
        for task in attack:
            task.cancel()
        for result in await asyncio.gather(*attack, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError)


@pytest.mark.parametrize("schema", [TREE, PATTERNS], ids=["tree", "patterns"])
def test_a_conversion_ends_soon_after_its_client_has_left(schema: Any) -> None:
    looks = 0

    def given_up() -> bool:
        nonlocal looks
        looks += 1
        return looks == 3

    budget = Budget(given_up=given_up)
    with pytest.raises(TooMuchWork, match="disconnected"):
        schema_grammar(schema, budget)
    assert budget.spent < 8_000_000
    assert looks == 3


@pytest.mark.parametrize("schema", [TREE, PATTERNS], ids=["tree", "patterns"])
def test_a_conversion_that_is_wanted_soon_takes_little_work(schema: Any) -> None:
    budget = Budget(soon=True)
    with pytest.raises(TakesLong):
        schema_grammar(schema, budget)
    assert budget.spent < 600_000


async def test_work_that_takes_long_gives_the_same_result() -> None:
    calls = []

    def work(*, soon: bool, given_up: Callable[[], bool]) -> str:
        calls.append((soon, given_up(), threading.current_thread().name))
        if soon:
            raise TakesLong
        return "done"

    assert await in_turn(work) == "done"
    assert [(soon, given_up) for soon, given_up, _ in calls] == [(True, False), (False, False)]
    assert calls[0][2] != calls[1][2]
    large = {"properties": {f"property{i}": {"type": "string", "maxLength": 20} for i in range(3000)}}
    with pytest.raises(TakesLong):
        schema_grammar(large, Budget(soon=True))
    params: Any = await completion(json_schema=large)
    assert params.sampling.grammar.text == schema_grammar(large)
    with pytest.raises(InvalidRequest, match="too complex"):
        await completion(json_schema=TREE)
