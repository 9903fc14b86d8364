"""Speculative decoding together with images, adapters and thinking budgets gives the same answers as without drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drafting import CACHE, EXACT, FOX, OTHER, SAME, SIMPLE
from engine_tools import GREEDY, ask, running
from llama_corral.worker.engine.messages import Sampling, Thinking
from llama_corral.worker.engine.runner import LoadedModel
from media_engine import ALL, M, look, seeing

KINDS = {"cache": CACHE, "simple": SIMPLE, "same": SAME, "other": OTHER}
every = pytest.mark.parametrize("drafts", KINDS.values(), ids=KINDS)


def with_draft(models: Path, drafts: dict[str, Any], model: str = "") -> dict[str, Any]:
    settings = EXACT | drafts
    if "model_draft" in drafts:
        settings["draft"] = models / (model or drafts["model_draft"])
    return settings


@pytest.mark.parametrize("drafts", [CACHE, SAME], ids=["cache", "same"])
@pytest.mark.parametrize("kind", ALL)
async def test_answers_about_images(models: Path, kind: str, drafts: dict[str, Any]) -> None:
    model, _, files, _ = ALL[kind]

    async def seen(settings: dict[str, Any]) -> list[object]:
        async with seeing(models, kind, **settings) as engine, engine.use() as loaded:
            prompts = [(f"What is {M} here? {FOX}", [files[0]]), (f"{FOX} {M}{M}", list(files)), (FOX, [])]
            asked = [look(loaded, text, *some, n_predict=50) for text, some in prompts]
            together = [(await request.one()).tokens for request in asked]
            again = [(await look(loaded, text, *some, n_predict=50).one()).tokens for text, some in prompts]
            if drafts is CACHE and settings is not EXACT:
                assert engine.snapshot.totals.draft_checks > 0
            return [together, again]

    expected = await seen(EXACT)
    assert await seen(with_draft(models, drafts, model)) == expected


@every
async def test_drafts_with_different_adapters(models: Path, drafts: dict[str, Any]) -> None:
    """A draft is still valid after it has waited for the batch of its adapters."""

    async def texts(loaded: LoadedModel, together: bool) -> list[tuple[int, ...]]:
        requests = [{"adapters": ((0, scale),), "n_predict": 40} for scale in (0.0, 1.0, 0.5, 1.0)]
        if together:
            return [(await request.one()).tokens for request in [ask(loaded, FOX, **fields) for fields in requests]]
        return [(await ask(loaded, FOX, **fields).one()).tokens for fields in requests]

    settings = {"lora": (str(models / "tiny-lora.gguf"),), "parallel": 4, "ctx_size": 2048}
    async with running(models / "tiny-llama.gguf", **settings, **EXACT) as engine, engine.use() as loaded:
        expected = await texts(loaded, False)
    more = with_draft(models, drafts)
    async with running(models / "tiny-llama.gguf", **settings, **more) as engine, engine.use() as loaded:
        assert await texts(loaded, True) == expected
        assert engine.snapshot.totals.draft_checks > 0


@every
async def test_thinking_budgets(models: Path, drafts: dict[str, Any]) -> None:
    thinking = Thinking("", ("</think>",), budget=11, message=" so it is")
    samplings = [Sampling(temperature=0.0, thinking=thinking), Sampling(seed=4, thinking=thinking), GREEDY]

    async def answers(settings: dict[str, Any]) -> list[str]:
        async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
            return [(await ask(loaded, FOX, n_predict=60, sampling=sampling).one()).text for sampling in samplings]

    expected = await answers(EXACT)
    assert " so it is</think>" in expected[0]
    assert await answers(with_draft(models, drafts)) == expected
