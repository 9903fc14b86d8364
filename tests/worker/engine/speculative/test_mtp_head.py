"""An MTP head drafts for its own model: answers equal those without drafts; a cached prompt gets the same drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drafting import EXACT, FOX, answers, drafting
from drafting_scenes import LONG, PRESETS, SCENES, Scene, check_drafting
from engine_tools import ask, asleep, running
from llama_corral.common.hub.resolve import ModelFiles
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.engine.llama.errors import LoadError
from llama_corral.worker.engine.messages import Piece, Sampling
from llama_corral.worker.engine.runner import Engine, LoadedModel
from programs import Programs

ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
HEAD = {"spec_type": ("draft-mtp",)}
both = pytest.mark.parametrize("model", ["tiny-glm-mtp.gguf", "tiny-qwen-mtp.gguf"], ids=["glm", "hybrid"])


@both
async def test_answers_equal_those_without_drafts(models: Path, model: str) -> None:
    requests: list[dict[str, Any]] = [
        {"n_predict": 80, "sampling": ENDLESS},
        {"n_predict": 40, "sampling": Sampling(seed=7, temperature=0.9, n_probs=3)},
        {"prompt": "The quick brown", "n_predict": 30, "stop": ("e",)},
        {"prompt": LONG, "n_predict": 30, "n": 2, "sampling": Sampling(seed=3)},
        {"n_predict": 1},
        {"prompt": LONG[:300], "n_predict": 300, "sampling": ENDLESS},
    ]

    found = []
    for drafts in ({}, HEAD):
        async with drafting(models, drafts, model=model) as (engine, loaded):
            found.append(await answers(loaded, *requests))
            assert (engine.snapshot.totals.draft_accepted > 20) == bool(drafts)
    assert found[0] == found[1]


@both
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("unified", [True, False])
async def test_drafts_are_accepted_in_every_scene(models: Path, model: str, scene: Scene, unified: bool) -> None:
    settings = {"ctx_size": 8192, "parallel": 4, "batch_size": 256, "kv_unified": unified}
    async with drafting(models, HEAD, model=model, **settings) as (engine, loaded):
        await scene(loaded)
        totals = engine.snapshot.totals
        assert totals.drafted > totals.draft_accepted > 0


async def drafts_of(engine: Engine, loaded: LoadedModel, prompt: Any, **fields: Any) -> tuple[object, ...]:
    before = engine.snapshot.totals
    result = await ask(loaded, prompt, n_predict=60, sampling=ENDLESS, **fields).one()
    after = engine.snapshot.totals
    return result.tokens, after.drafted - before.drafted, after.draft_accepted - before.draft_accepted


@both
async def test_a_cached_prompt_gets_the_same_drafts_as_a_new_one(models: Path, model: str) -> None:
    """The same prompt, the next turn, a prefix from another slot: no hidden state is missing."""

    async with drafting(models, HEAD, model=model) as (engine, loaded):
        first = await drafts_of(engine, loaded, FOX, id_slot=0)
        assert await drafts_of(engine, loaded, FOX, id_slot=0) == first
        assert await drafts_of(engine, loaded, FOX, id_slot=1) == first
        answer = first[0]
        assert isinstance(answer, tuple | list)
        longer = [*loaded.vocab.tokenize(FOX, True, True), *answer, *loaded.vocab.tokenize(" And then")]
        await drafts_of(engine, loaded, FOX, id_slot=0)
        warm = await drafts_of(engine, loaded, longer, id_slot=0)
    async with drafting(models, HEAD, model=model) as (engine, loaded):
        assert await drafts_of(engine, loaded, longer) == warm


@both
async def test_concurrent_streams_and_one_that_is_cancelled(models: Path, model: str) -> None:
    prompts = [FOX, LONG[:50], LONG[100:130], FOX + " fox"]
    async with drafting(models, {}, model=model, parallel=4, kv_unified=True, ctx_size=4096) as (_, loaded):
        plain = [(await ask(loaded, prompt, n_predict=60, sampling=ENDLESS).one()).tokens for prompt in prompts]
    async with drafting(models, HEAD, model=model, parallel=4, kv_unified=True, ctx_size=4096) as (engine, loaded):
        gone = ask(loaded, LONG, n_predict=900, sampling=ENDLESS, stream=True)
        await gone.until(lambda events: any(isinstance(event, Piece) for event in events))
        asked = [ask(loaded, prompt, n_predict=60, sampling=ENDLESS) for prompt in prompts]
        gone.ticket.cancel()
        assert [(await request.one()).tokens for request in asked] == plain
        assert engine.snapshot.totals.draft_accepted > 0


@both
@pytest.mark.parametrize("unified", [True, False])
async def test_concurrent_streams_get_the_same_drafts_as_sequential_ones(
    models: Path, model: str, unified: bool
) -> None:
    prompts = [FOX, LONG[:50], LONG[100:130], FOX + " fox"]

    async def accepted(*, together: bool) -> tuple[int, int]:
        settings = {"parallel": 4, "kv_unified": unified, "ctx_size": 4096, "cache_prompt": False}
        async with drafting(models, HEAD, model=model, **settings) as (engine, loaded):
            asked = []
            for prompt in prompts:
                asked.append(ask(loaded, prompt, n_predict=60, sampling=ENDLESS, cache_prompt=False))
                if not together:
                    await asked[-1].one()
            for request in asked:
                await request.one()
            totals = engine.snapshot.totals
            return totals.drafted, totals.draft_accepted

    assert await accepted(together=True) == await accepted(together=False)


async def test_the_head_follows_a_context_shift(models: Path) -> None:
    found = []
    for drafts in ({}, HEAD):
        settings = {"model": "tiny-glm-mtp.gguf", "ctx_size": 256, "parallel": 1, "context_shift": True}
        async with drafting(models, drafts, **settings) as (engine, loaded):
            result = await ask(loaded, FOX, n_predict=700, sampling=ENDLESS, n_keep=4).one()
            assert result.truncated
            found.append(result.tokens)
    assert found[0] == found[1]
    assert engine.snapshot.totals.draft_accepted > 100


async def test_idle_sequences_are_cleared_when_the_head_context_is_full(models: Path) -> None:
    settings = {"ctx_size": 768, "parallel": 4, "kv_unified": True, "cache_ram": 0, "cache_idle_slots": False}
    async with drafting(models, HEAD, model="tiny-glm-mtp.gguf", **settings) as (engine, loaded):
        for i in range(8):
            before = engine.snapshot.totals.draft_accepted
            await ask(loaded, LONG[i * 50 : i * 50 + 300], n_predict=30, id_slot=i % 4).one()
            assert engine.snapshot.totals.draft_accepted > before


async def test_drafts_are_the_same_after_sleep(models: Path) -> None:
    settings = {**EXACT, **HEAD, "sleep_idle_seconds": 1, "parallel": 1}
    async with running(models / "tiny-qwen-mtp.gguf", **settings) as engine:
        async with engine.use() as loaded:
            first = await drafts_of(engine, loaded, FOX)
        await asleep(engine)
        async with engine.use() as loaded:
            assert await drafts_of(engine, loaded, FOX) == first


@pytest.mark.parametrize("kinds", [("draft-mtp",), ("none",)])
@pytest.mark.parametrize("model", ["tiny-glm-mtp.gguf", "tiny-glm-headless.gguf"])
async def test_a_head_in_a_separate_file(models: Path, kinds: tuple[str, ...], model: str) -> None:
    async with drafting(models, HEAD, model="tiny-glm-mtp.gguf") as (engine, loaded):
        first = await drafts_of(engine, loaded, FOX)
    main, head = models / model, models / "mtp-tiny-glm.gguf"
    options = Settings.of(model=str(main), spec_type=kinds, ctx_size=2048, parallel=2, threads=1, **EXACT)
    engine = Engine(options, ModelFiles(main, draft=head, draft_kind="mtp"), lambda _: None)
    await engine.load()
    async with engine.use() as loaded:
        assert await drafts_of(engine, loaded, FOX) == first
    await engine.close()


@pytest.mark.parametrize(
    ("model", "drafts", "text"),
    [
        ("tiny-llama.gguf", HEAD, "cannot draft with an MTP head: it has none"),
        ("tiny-glm-headless.gguf", HEAD, "cannot draft with an MTP head: it has none"),
        ("tiny-llama.gguf", {**HEAD, "model_draft": "mtp-tiny-glm.gguf"}, "it was made for another model than"),
        ("tiny-glm-mtp.gguf", {"spec_type": ("draft-simple", "draft-mtp")}, "exclude each other"),
        ("tiny-qwen-mtp.gguf", {**HEAD, "model_draft": "missing.gguf"}, "missing.gguf"),
    ],
)
async def test_a_model_without_a_usable_head_is_refused(
    models: Path, model: str, drafts: dict[str, Any], text: str
) -> None:
    with pytest.raises(LoadError, match=text):
        async with drafting(models, drafts, model=model):
            pass


def test_a_head_is_refused_as_a_draft_model(programs: Programs) -> None:
    head = str(programs.models / "mtp-tiny-glm.gguf")
    worker = programs.worker("-md", head, "--spec-type", "draft-simple", wait="nothing")
    assert worker.exit_code(40) == 1
    assert "is not a draft model but a head" in worker.log_text


def test_a_worker_and_a_gateway_with_a_head(programs: Programs) -> None:
    models = programs.models
    presets = f"[head]\nmodel = {models}/tiny-glm-mtp.gguf\nspec-type = draft-mtp,ngram-simple\nctx-size = 1024\n"
    presets += f"[own]\nmodel = {models}/tiny-glm-mtp.gguf\nmodel-draft = {models}/mtp-tiny-glm.gguf\nctx-size = 1024\n"
    gateway = programs.gateway(presets=PRESETS + presets)
    check_drafting(gateway.client, {"model": "head", "n_predict": 60}, "none,draft-mtp,ngram-simple")
    check_drafting(gateway.client, {"model": "own", "n_predict": 60}, "none,draft-mtp")
    metrics = gateway.client.get("/metrics?model=head").text
    assert "spec_decode_num_drafts_total 0" not in metrics
