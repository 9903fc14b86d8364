"""Engines with every kind of drafter, and answers in a form that can be compared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_tools import ask
from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.common.hub.resolve import ModelFiles
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.engine.messages import Finished, TokenProbs
from llama_corral.worker.engine.runner import Engine, LoadedModel

FOX = "Once upon a time there was a little fox, a little fox, a little fox, a little"
SIMPLE = {"spec_type": ("ngram-simple",), "spec_ngram_simple_size_n": 2, "spec_ngram_simple_size_m": 8}
CACHE = {"spec_type": ("ngram-cache",)}
SAME = {"model_draft": "tiny-llama.gguf", "spec_draft_n_max": 5}
OTHER = {"model_draft": "tiny-llama-b.gguf", "spec_draft_n_max": 4}
EXACT = {"flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32"}
"""Options for full precision: a row's result depends on the other rows in its batch by rounding, but only slightly."""


def engine_of(models: Path, drafts: dict[str, Any], reports: list[WorkerReport], **settings: Any) -> Engine:
    settings = {
        "ctx_size": 2048,
        "parallel": 2,
        "threads": 1,
        "model": "tiny-llama.gguf",
        **EXACT,
        **settings,
        **drafts,
    }
    draft = models / drafts["model_draft"] if "model_draft" in drafts else None
    model = models / settings.pop("model")
    return Engine(Settings(model=str(model), **settings), ModelFiles(model, draft=draft), reports.append)


@asynccontextmanager
async def drafting(models: Path, drafts: dict[str, Any], **settings: Any) -> AsyncIterator[tuple[Engine, LoadedModel]]:
    engine = engine_of(models, drafts, [], **settings)
    try:
        await engine.load()
        async with engine.use() as loaded:
            yield engine, loaded
    finally:
        await engine.close()


def rounded(probs: Sequence[TokenProbs]) -> list[object]:
    return [[(prob.id, pytest.approx(prob.p, abs=1e-4)) for prob in (each.chosen, *each.top)] for each in probs]


def comparable(result: Finished) -> tuple[object, ...]:
    return (
        result.tokens, result.text, result.stop_type, result.stopping_word, result.n_decoded, result.n_cached,
        result.truncated, result.has_new_line, rounded(result.probs),
    )  # fmt: skip


async def answers(loaded: LoadedModel, *requests: dict[str, Any]) -> list[tuple[object, ...]]:
    asked = [ask(loaded, fields.get("prompt", FOX), **{k: v for k, v in fields.items() if k != "prompt"})
             for fields in requests]  # fmt: skip
    return [comparable(result) for request in asked for result in await request.all()]
