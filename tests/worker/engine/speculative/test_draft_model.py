"""The draft model's context follows the slots: if a model drafts for itself, all its drafts are accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drafting import FOX, SAME, drafting
from drafting_scenes import (
    BODY,
    ENDLESS,
    LONG,
    PRESETS,
    SCENES,
    Scene,
    a_conversation,
    check_drafting,
    choices,
)
from engine_tools import ask
from llama_corral.worker.engine.runner import Engine, LoadedModel
from programs import Program, Programs


async def a_full_context(loaded: LoadedModel) -> None:
    await ask(loaded, FOX, n_predict=900, sampling=ENDLESS, n_keep=4).one()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("unified", [True, False])
async def test_drafts_of_the_same_model_are_accepted_in_every_scene(models: Path, scene: Scene, unified: bool) -> None:
    settings = {"ctx_size": 8192, "parallel": 4, "batch_size": 256, "kv_unified": unified}
    async with drafting(models, SAME, **settings) as (engine, loaded):
        await scene(loaded)
        assert_right(engine)


async def test_idle_sequences_are_cleared_when_the_draft_context_is_full(models: Path) -> None:
    """The KV cache is as small as the main model's, so idle sequences are cleared when others need cells."""

    settings = {"ctx_size": 768, "parallel": 4, "kv_unified": True, "cache_ram": 0, "cache_idle_slots": False}
    async with drafting(models, SAME, **settings) as (engine, loaded):
        for i in range(8):
            await ask(loaded, LONG[i * 50 : i * 50 + 300], n_predict=20, id_slot=i % 4).one()
            assert_right(engine)


def assert_right(engine: Engine, part: float = 0.99) -> None:
    """Check that nearly all drafted tokens were accepted; rounding may change a few."""
    totals = engine.snapshot.totals
    assert totals.drafted > 0
    assert totals.draft_accepted >= part * totals.drafted


async def test_the_draft_context_follows_a_context_shift(models: Path) -> None:
    async with drafting(models, SAME, ctx_size=256, parallel=1, context_shift=True) as (engine, loaded):
        await a_full_context(loaded)
        assert_right(engine, 0.95)


@pytest.mark.parametrize("model", ["tiny-mamba.gguf", "tiny-gemma3.gguf"])
async def test_drafts_with_recurrent_and_sliding_window_memory(models: Path, model: str) -> None:
    async with drafting(models, {"model_draft": model}, model=model, ctx_size=4096) as (engine, loaded):
        await a_conversation(loaded)
        await choices(loaded)
        assert_right(engine, 0.95)


async def test_minimum_probability_and_length_of_drafts(models: Path) -> None:
    async def accepted(**drafts: Any) -> tuple[int, int]:
        async with drafting(models, {**SAME, **drafts}) as (engine, loaded):
            await ask(loaded, FOX, n_predict=60, sampling=ENDLESS).one()
            totals = engine.snapshot.totals
            return totals.draft_checks, totals.drafted

    n_checks, n_drafted = await accepted()
    assert n_drafted > 4 * n_checks
    assert (await accepted(draft_p_min=1.0))[1] < n_drafted
    assert (await accepted(draft_p_min=0.5, spec_draft_n_min=5))[0] < n_checks
    assert await accepted(spec_draft_n_max=0) == (0, 0)


# -- the program -------------------------------------------------------------------------------------------------------


def test_a_worker_with_a_draft_model(programs: Programs) -> None:
    draft = str(programs.models / "tiny-llama.gguf")
    worker = programs.worker("-md", draft, "--spec-draft-n-max", "4", "-c", "1024", "-t", "1", "--slots", "--metrics")
    check_drafting(worker.client, {}, "none,draft-simple")
    (chat, *_) = worker.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}],
                                                                  "max_tokens": 9}).json()["choices"]  # fmt: skip
    assert chat["finish_reason"] == "length"
    assert all(slot["speculative"] for slot in worker.client.get("/slots").json())
    metrics = worker.client.get("/metrics").text
    assert 'spec_decode_num_accepted_tokens_per_pos_total{position="3"}' in metrics
    assert "spec_decode_num_drafts_total 0" not in metrics
    props = worker.client.get("/props").json()
    assert props["default_generation_settings"]["params"]["speculative.types"] == "none"


def test_a_gateway_with_drafts(programs: Programs) -> None:
    gateway = programs.gateway(presets=PRESETS)
    check_drafting(gateway.client, {"model": "grams", "n_predict": 150}, "none,ngram-simple,ngram-cache")
    check_drafting(gateway.client, {"model": "two"}, "none,draft-simple")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--spec-type", "draft-eagle3"], "not supported: draft-eagle3, -dflash and -dspark need"),
        (["--spec-type", "ngram-foo"], "invalid value 'ngram-foo'"),
        (["--spec-type", "draft-simple"], "needs a draft model"),
        (["-md", "missing.gguf"], "missing.gguf"),
    ],
)
def test_a_worker_with_invalid_draft_options_exits_with_the_reason(
    programs: Programs, args: list[str], text: str
) -> None:
    worker: Program = programs.worker(*args, wait="nothing")
    assert worker.exit_code(40) == 1
    assert text in worker.log_text


def test_spec_default_selects_ngram_mod(programs: Programs) -> None:
    worker = programs.worker("--spec-default", "-c", "1024", "-t", "1", "--slots")
    answer = worker.client.post("/completion", json=BODY).raise_for_status().json()
    assert answer["generation_settings"]["speculative.types"] == "none,ngram-mod"


def test_a_dynamic_lookup_cache_is_saved_and_used_by_the_next_worker(programs: Programs) -> None:
    file = programs.directory / "lookup"
    args = ("--spec-type", "ngram-cache", "-lcd", str(file), "-c", "1024", "-t", "1")
    worker = programs.worker(*args)
    first = worker.client.post("/completion", json=BODY).raise_for_status().json()
    for _ in range(3):  # one occurrence is not enough for a draft
        worker.client.post("/completion", json=BODY).raise_for_status()
    assert worker.stop() == 0
    size = file.stat().st_size
    assert size > 0
    again = programs.worker(*args)
    second = again.client.post("/completion", json=BODY).raise_for_status().json()
    assert second["content"] == first["content"]
    assert second["timings"]["draft_n_accepted"] > first["timings"].get("draft_n_accepted", 0)
    assert again.stop() == 0
    assert file.stat().st_size >= size
