"""LoRA adapters and control vectors: scales of the server and of requests, reuse of slots, invalid files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import ask, asleep, running, vectors
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.engine.adapters.activation import ALL, activation, last_occurrence
from llama_corral.worker.engine.adapters.control_vector import read_directions
from llama_corral.worker.engine.runner import LoadedModel, LoadError
from programs import Program, Programs
from tiny_adapters import write_control_vector

PROMPT = "The lazy dog sees a fox"
ON, OFF = ((0, 1.0),), ((0, 0.0),)


async def text(loaded: LoadedModel, prompt: str = PROMPT, **fields: Any) -> str:
    return (await ask(loaded, prompt, **fields).one()).text


async def n_reused(loaded: LoadedModel, prompt: str = PROMPT, **fields: Any) -> int:
    return (await ask(loaded, prompt, **fields).one()).timings.cache_n


# -- activations -----------------------------------------------------------------------------------------------------


activations = st.builds(
    activation, st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0])), st.integers(-1, 12)
)


@given(activations, activations, st.integers(1, 20))
def test_common_tokens_have_the_same_adapters(a: Any, b: Any, n: int) -> None:
    for position in range(min(n, a.common_length(b))):
        assert a.at(position) == b.at(position)
    assert a.common_length(b) == b.common_length(a)
    assert a.common_length(b) == ALL or (a.scales or b.scales)


@given(activations, st.integers(1, 30))
def test_a_batch_ends_where_an_adapter_begins(a: Any, n: int) -> None:
    position = 0
    while position < n:
        step = min(a.uniform_length(position, n), n - position)
        assert step > 0
        assert len({a.at(position + i) for i in range(step)}) == 1
        position += step


@given(activations, st.integers(0, 10), st.integers(1, 10))
def test_after_a_shift_every_token_keeps_its_adapters(a: Any, begin: int, n: int) -> None:
    before = [a.at(position) for position in range(30)]
    del before[begin : begin + n]
    assert [a.with_removed(begin, begin + n).at(position) for position in range(30 - n)] == before


@pytest.mark.parametrize(
    ("tokens", "wanted", "start"),
    [([1, 2, 3, 2, 3], [2, 3], 3), ([1, 2], [3], -1), ([1, 1, 2], [1, 2], 1), ([2, 2, 3, 3], [2, 3], 1), ([], [1], -1)],
)
def test_last_occurrence(tokens: list[int], wanted: list[int], start: int) -> None:
    assert last_occurrence(tokens, wanted) == start


# -- LoRA ------------------------------------------------------------------------------------------------------------


def with_lora(models: Path, *names: str, **settings: Any) -> Any:
    """Run an engine without a prompt cache in host memory, which could restore prompts of other adapters."""
    files = tuple(str(models / f"{name}.gguf") for name in names)
    return running(models / "tiny-llama.gguf", lora=files, **{"cache_ram": 0, **settings})


async def test_a_scale_changes_the_answer_and_slots_do_not_mix_them_up(models: Path) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        plain = await text(loaded)
    async with with_lora(models, "tiny-lora", parallel=1) as engine, engine.use() as loaded:
        assert await text(loaded, adapters=OFF) == plain
        adapted = await text(loaded)
        assert adapted != plain
        assert await text(loaded, adapters=OFF) == plain, "in the slot that has just computed it otherwise"
        assert await text(loaded, adapters=ON) == adapted
        assert await n_reused(loaded, adapters=ON) > 0
        assert await n_reused(loaded, adapters=((0, 0.5),)) == 0
        await loaded.set_adapter_scales({0: 0.5})
        assert await n_reused(loaded) > 0
        await loaded.set_adapter_scales({7: 1.0})
        assert [scale for _, scale in loaded.adapters()] == [0.0]
        assert await n_reused(loaded) == 0
        assert await text(loaded) == plain


async def test_host_memory_separates_adapters_too(models: Path) -> None:
    prompt = "The quick brown fox jumps over the lazy dog while a small herd of horses stands by the fence"
    sets = [OFF, ON, ((0, 0.5),), ((1, 1.0),)]
    names = ("tiny-lora", "tiny-alora")
    async with with_lora(models, *names, parallel=1, cache_ram=64) as engine, engine.use() as loaded:
        expected = [await text(loaded, prompt, adapters=adapters, cache_prompt=False) for adapters in sets]
        assert len(set(expected)) >= 3
        for first in range(len(sets)):
            order = [*range(first, len(sets)), *range(first)]
            assert [await text(loaded, prompt, adapters=sets[i]) for i in order] == [expected[i] for i in order]


async def test_requests_with_different_scales_run_in_parallel(models: Path) -> None:
    sets = [(), OFF, ON, ((0, 0.5),), ((1, 1.0),), ((0, 0.5), (1, 0.5))]
    settings = {"parallel": 6, "kv_unified": True, "ctx_size": 1024}
    async with with_lora(models, "tiny-lora", "tiny-lora-b", **settings) as engine, engine.use() as loaded:
        alone = [await text(loaded, adapters=adapters, cache_prompt=False) for adapters in sets]
        fields = [{"adapters": adapters, "cache_prompt": False} for adapters in sets]
        together = await asyncio.gather(*(text(loaded, **f) for f in fields))
        assert together == alone
        assert len(set(alone)) == len(sets)
        requests = [ask(loaded, PROMPT, n=2, adapters=ON), ask(loaded, PROMPT, n=2, adapters=OFF)]
        for request, expected in zip(requests, (alone[2], alone[1]), strict=True):
            assert [choice.text for choice in await request.all()] == [expected, expected]


async def test_adapters_apply_to_embeddings_too(models: Path) -> None:
    async with with_lora(models, "tiny-lora", embeddings=True, pooling="mean") as engine, engine.use() as loaded:
        adapted = await vectors(loaded, PROMPT)
        await loaded.set_adapter_scales({})
        assert await vectors(loaded, PROMPT) != adapted


async def test_an_activated_adapter_reuses_the_tokens_before_it(models: Path) -> None:
    async with with_lora(models, "tiny-alora", parallel=1, ctx_size=512) as engine, engine.use() as loaded:
        [(info, _)] = loaded.adapters()
        assert info.invocation_text == " fox"
        start = last_occurrence(loaded.vocab.tokenize(PROMPT, True), info.invocation)
        adapted = await text(loaded)
        plain = await text(loaded, adapters=OFF, cache_prompt=False)
        assert adapted != plain
        assert await n_reused(loaded) == start - 1, "from plain to activated"
        assert await text(loaded) == adapted
        assert await n_reused(loaded) == start - 1
        assert await n_reused(loaded, adapters=OFF) == start - 1, "and back"
        assert await text(loaded, adapters=OFF) == plain
        without = "Once upon a time"
        assert await text(loaded, without) == await text(loaded, without, adapters=OFF, cache_prompt=False)


async def test_two_activated_adapters_in_one_request_are_rejected(models: Path) -> None:
    async with with_lora(models, "tiny-alora", "tiny-alora", "tiny-lora") as engine, engine.use() as loaded:
        with pytest.raises(InvalidRequest, match="Cannot run multiple aLoRAs in a single request"):
            await text(loaded, adapters=((0, 1.0), (1, 1.0)))
        await text(loaded)  # together with an ordinary adapter all apply to all tokens


async def test_scales_are_kept_during_sleep(models: Path) -> None:
    async with with_lora(models, "tiny-lora", sleep_idle_seconds=1) as engine:
        async with engine.use() as loaded:
            await loaded.set_adapter_scales({0: 0.25})
        await asleep(engine)
        async with engine.use() as loaded:
            assert [scale for _, scale in loaded.adapters()] == [0.25]


@pytest.mark.parametrize(
    ("name", "why"),
    [("missing", "no such file"), ("not-a-model", ""), ("tiny-llama-b", "expect general.type to be 'adapter'")],
)
async def test_invalid_adapter_files_fail_the_load(models: Path, name: str, why: str) -> None:
    with pytest.raises(LoadError, match=rf"failed to load LoRA adapter '.*{name}.gguf': .*{why}"):
        async with with_lora(models, name):
            pass


# -- over HTTP -------------------------------------------------------------------------------------------------------


ASK = {"prompt": PROMPT, "n_predict": 8, "temperature": 0, "cache_prompt": False}


def test_adapters_are_listed_and_set_over_http(programs: Programs) -> None:
    scaled = f"{programs.models}/tiny-lora.gguf:0.5,{programs.models}/tiny-alora.gguf:-1"
    program = programs.worker("--lora-scaled", scaled, "--lora", f"{programs.models}/tiny-lora-b.gguf")
    first, second, third = program.client.get("/lora-adapters").json()
    assert first["path"].endswith("tiny-lora-b.gguf")
    assert first | {"path": ""} == {"id": 0, "path": "", "scale": 1.0, "task_name": "", "prompt_prefix": ""}
    assert (second["scale"], second["task_name"], second["prompt_prefix"]) == (0.5, "test", "Say: ")
    assert (third["scale"], third["alora_invocation_string"]) == (-1, " fox")
    assert third["alora_invocation_tokens"]
    reply = program.client.post("/lora-adapters", json=[{"id": 1, "scale": 0.75}, {"id": 9, "scale": 1}])
    assert reply.json() == {"success": True}
    assert [item["scale"] for item in program.client.get("/lora-adapters").json()] == [0, 0.75, 0]
    for body in ({"id": 0}, [1], [{"id": "x"}], [{"id": 0, "scale": "x"}]):
        assert program.client.post("/lora-adapters", json=body).status_code == 400
    shown = program.client.post("/completion", json={**ASK, "lora": [{"id": 1, "scale": 1}, {"id": 0}]}).json()
    assert shown["generation_settings"]["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
    error = program.client.post("/completion", json={**ASK, "lora": {"id": 0}}).json()["error"]
    assert "'lora' must be an array of objects with 'id' and 'scale' fields" in error["message"]


def test_the_list_is_empty_without_adapters(worker: Program) -> None:
    assert worker.client.get("/lora-adapters").json() == []
    assert worker.client.post("/lora-adapters", json=[{"id": 0, "scale": 1}]).json() == {"success": True}
    assert worker.client.post("/completion", json={**ASK, "lora": [{"id": 0, "scale": 1}]}).status_code == 200


def test_adapters_through_the_router(start_gateway: Callable[..., Program]) -> None:
    presets = (
        "[tiny]\nmodel = {models}/tiny-llama.gguf\nlora = {models}/tiny-lora.gguf\nlora-init-without-apply = on\n"
        "control-vector-scaled = {models}/tiny-control.gguf:0.5\ncontrol-vector-layer-range = 1 1\nparallel = 1\n"
    )
    client = start_gateway(presets=presets).client
    plain = client.post("/completion", json={**ASK, "model": "tiny"}).json()["content"]
    assert client.get("/lora-adapters?model=tiny").json()[0]["scale"] == 0
    assert client.post("/lora-adapters?model=tiny", json=[{"id": 0, "scale": 1}]).json() == {"success": True}
    assert client.get("/lora-adapters?model=tiny").json()[0]["scale"] == 1
    assert client.post("/completion", json={**ASK, "model": "tiny"}).json()["content"] != plain


# -- control vectors -------------------------------------------------------------------------------------------------


async def test_a_control_vector_changes_the_answer(models: Path) -> None:
    async def answer(**settings: Any) -> str:
        async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
            return await text(loaded)

    file = str(models / "tiny-control.gguf")
    plain, whole = await answer(), await answer(control_vector=(file,))
    assert whole != plain
    assert await answer(control_vector_scaled=((file, 0.0),)) == plain
    assert await answer(control_vector_scaled=((file, 0.25), (file, 0.75))) == whole, "several add up"
    assert await answer(control_vector=(file,), control_vector_layer_range=(2, 2)) == plain, "it is for layer 1"


def test_a_control_vectors_directions_are_read(models: Path) -> None:
    directions = read_directions(models / "tiny-control.gguf")
    assert [(layer, values.shape) for layer, values in directions.items()] == [(1, (64,))]


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "it contains no direction"),
        ({"direction.0": np.zeros(64, np.float32)}, "is not named direction.<layer>"),
        ({"other.1": np.zeros(64, np.float32)}, "is not named direction.<layer>"),
        ({"direction.1": np.zeros((2, 64), np.float32)}, "has 2 dimensions"),
        ({"direction.1": np.zeros(64, np.float16)}, "is f16, not f32"),
        ({"direction.1": np.zeros(64, np.float32), "direction.2": np.zeros(32, np.float32)}, "have different sizes"),
        ({"direction.1": np.zeros(32, np.float32)}, "have 32 values per layer, the model has 64"),
    ],
)
async def test_invalid_control_vector_files_fail_the_load(
    models: Path, tmp_path: Path, tensors: dict[str, Any], why: str
) -> None:
    file = tmp_path / "control.gguf"
    write_control_vector(file, tensors)

    with pytest.raises(LoadError, match=why):
        async with running(models / "tiny-llama.gguf", control_vector=(str(file),)):
            pass
