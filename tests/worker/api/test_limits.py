"""Every list, object and text of a request has a limit, and every number a range."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ContextExceeded, InvalidRequest
from llama_corral.common.web.json_fields import Fields
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.api.completions import render_chat
from llama_corral.worker.api.request import params
from llama_corral.worker.api.request.limits import LIMITS, check_limits, reading_work
from llama_corral.worker.api.serving import WORKER_CONTEXT, share_of
from llama_corral.worker.app import COMPUTING, STREAMING
from llama_corral.worker.chat.prompt import ChatFormat
from llama_corral.worker.chat.request import ChatDefaults, read_chat
from programs import Program, Programs, wait_until
from request_bodies import BODIES

SOURCE = Path(params.__file__).parents[3]
READERS = [
    *sorted((SOURCE / "worker/api").rglob("*.py")),
    *(SOURCE / "worker/chat" / name for name in ("request.py", "tools.py", "constraints/response_format.py")),
]
NUMBERS = ("integer", "clamped_integer", "real", "limited_real")
GETTERS = ("string", "strings", "object", "find", "get")

INSIDE = {
    *("role", "type", "text", "delimiter", "value", "token", "url", "data", "media_type", "title", "source"),
    *("thinking", "tool_use_id", "call_id", "is_error", "arguments", "function", "parameters", "description"),
    *("input_schema", "schema", "strict", "json_schema", "tool_name", "tool_call_id", "tool_calls", "input"),
    *("output", "item", "summary", "generate_summary", "encrypted_content", "image_url", "input_audio", "effort"),
    *("mode", "allowed_tools", "prompt_string", "multimodal_data", "custom", "status", "server", "names"),
    *("properties", "enum", "$ref", "from", "enable_thinking", "reasoning_content"),
}
"""Fields of the entries of a list, of a schema, or of a small object."""
NO_FIELDS = {"LLAMA_SERVER_SLOTS_DEBUG", "general.sampling.sequence", "auto", "timings", "__verbose"}
OTHER_NUMBERS = {"n_probs"}


def called_with(names: tuple[str, ...]) -> dict[str, str]:
    """Return the names of the fields that are read with these methods, and where."""
    found: dict[str, str] = {}
    for path in READERS:
        for node in ast.walk(ast.parse(path.read_text())):
            arguments: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                arguments = node.args[:1] if node.func.attr == "get" else node.args
            elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name | ast.Attribute):
                arguments = [node.slice] if "body" in ast.unparse(node.value) and "get" in names else []
            for argument in arguments:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found[argument.value] = f"{path.relative_to(SOURCE)}:{argument.lineno}"
    return found


def test_every_field_that_is_read_has_a_limit() -> None:
    """A new field must get an entry in LIMITS, or be read with a method that checks its range."""
    known = set(LIMITS) | INSIDE | NO_FIELDS | OTHER_NUMBERS | set(called_with((*NUMBERS, "boolean")))
    assert {name: where for name, where in called_with(GETTERS).items() if name not in known} == {}


@pytest.mark.parametrize("name", sorted(name for name, limit in LIMITS.items() if limit.entries))
def test_a_list_has_at_most_its_limit_of_entries(name: str) -> None:
    limit = LIMITS[name].entries
    assert limit is not None
    check_limits({name: [0] * limit})
    for body in ({name: [0] * (limit + 1)}, {"options": {name: [0] * (limit + 1)}}):
        with pytest.raises(InvalidRequest) as caught:
            check_limits(body)
        assert caught.value.message == f"Field '{name}': must have at most {limit} entries, but has {limit + 1}"
        assert caught.value.param == name


@pytest.mark.parametrize("name", sorted(name for name, limit in LIMITS.items() if limit.characters))
def test_the_texts_of_a_field_have_at_most_its_limit_of_characters(name: str) -> None:
    limit = LIMITS[name].characters
    assert limit is not None
    check_limits({name: "a" * limit})
    text = "a" * (limit + 1)
    for value in (text, [text], [[text, 1]], [text[:5], {"x": text[6:]}], {text: 1}):
        with pytest.raises(InvalidRequest, match=rf"^Field '{name}': must have at most {limit} characters, but has"):
            check_limits({name: value})


@pytest.mark.parametrize("documents", [["a" * 10**6], [{"title": "b", "text": "a" * 10**6}] * 3])
async def test_documents_for_the_template_are_limited_by_the_context(documents: list[Any]) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"documents": documents}}
    check_limits(body)
    form = ChatFormat("{% for d in documents %}{{ d.text or d }}{% endfor %}")
    worker: Any = SimpleNamespace(model=SimpleNamespace(chat=form), settings=Settings.of(special_in_messages=True))
    loaded: Any = SimpleNamespace(apply_builtin_template=None, vocab=None, n_ctx=100_000)
    chat = read_chat(body, ChatDefaults())
    assert len((await render_chat(worker, loaded, chat)).text) == len(documents) * 10**6
    loaded.n_ctx = 1000
    with pytest.raises(ContextExceeded):
        await render_chat(worker, loaded, chat)


@given(st.sampled_from(NUMBERS), st.sampled_from([10**309, -(10**309), 10**4299, 2**63 + 1, 1e308]))
def test_a_number_of_any_size_is_refused_or_clamped(getter: str, value: float) -> None:
    limits = {"low": 0, "high": 5} if getter != "real" else {"low": 0.0, "high": 5.0}
    number = 0
    with suppress(InvalidRequest):
        number = getattr(Fields({"x": value}), getter)("x", default=1, **limits)
    assert 0 <= number <= 5


@pytest.fixture(scope="module")
def worker(module_programs: Programs) -> Program:
    return module_programs.worker("--ctx-size", "512", "--embeddings", "--reranking", "--pooling", "rank")


POSTS = sorted(path for method, path, _ in [*STREAMING, *COMPUTING] if method == "POST" and "{" not in path)


@pytest.mark.parametrize("path", POSTS)
def test_every_endpoint_checks_the_limits(worker: Program, path: str) -> None:
    if path.endswith("/control"):
        body: Any = {"id": "a" * 5000}
    elif path == "/lora-adapters":
        body = [{"id": 0, "scale": 1}] * 1025
    else:
        body = {**dict(BODIES).get(path, {}), "stop": ["a"] * 100_000}
    response = worker.client.post(path, json=body)
    if response.status_code != 501:  # this model cannot do it, whatever the body
        assert response.status_code == 400
        assert "must have at most" in response.text


def test_a_list_of_sequence_breakers_may_be_as_long_as_clients_send_it() -> None:
    check_limits({"dry_sequence_breakers": [f"a name of {n:02} letters" for n in range(100)]})


def test_reading_work_counts_entries_and_characters() -> None:
    assert reading_work({"prompt": "a" * 10**6}) == 0
    assert reading_work({"logit_bias": [["a" * 10**5, 1.0]]}) > 10**5
    assert reading_work({"stop": ["a"] * 200}) > 3000


@pytest.mark.parametrize("n", [1025, 2**31 - 1])
@pytest.mark.parametrize("name", ["n_probs", "logprobs"])
def test_the_number_of_probabilities_has_a_limit(worker: Program, name: str, n: int) -> None:
    response = worker.client.post("/completion", json={"prompt": "a", name: n})
    assert response.status_code == 400
    assert f"<= 1024, but got {n}" in response.json()["error"]["message"]


def test_a_request_with_many_prompts_does_not_make_others_wait(module_programs: Programs) -> None:
    worker = module_programs.worker("--ctx-size", "512", "--parallel", "1", "--threads", "1", "--slots")
    many = {"prompt": ["a"] * 300, "n_predict": 20, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lambda: worker.client.post("/completion", json=many, timeout=120))
        wait_until(lambda: worker.client.get("/slots").json()[0]["is_processing"], "the first prompt is computed")
        for _ in range(3):
            worker.client.post("/completion", json={"prompt": "b", "n_predict": 1}, timeout=20).raise_for_status()
        assert not first.done()
        assert len(first.result().json()) == 300


async def test_clients_are_told_apart_by_their_keys_if_the_server_requires_keys() -> None:
    app: Any = {WORKER_CONTEXT: SimpleNamespace(has_keys=True)}
    headers = [{"Authorization": "Bearer a"}, {"X-Api-Key": "a"}, {"Authorization": "Bearer b"}]
    requests = [make_mocked_request("POST", "/completion", headers=each, app=app) for each in headers]
    first, same, other = map(share_of, requests)
    assert first.client == same.client != other.client
    assert first.client != "a"
    assert len({first.request, same.request, other.request}) == 3
    app[WORKER_CONTEXT] = SimpleNamespace(has_keys=False)
    assert {share_of(request).client for request in requests} == {""}
