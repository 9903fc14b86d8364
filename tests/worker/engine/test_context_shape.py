"""Compare the computed shape of contexts, which the router's memory estimate uses as well, with llama.cpp's own."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from engine_tools import running
from llama_corral.common.hub.gguf_header import read_header
from llama_corral.presets.context_shape import context_shape
from llama_corral.presets.options.settings import Settings
from llama_corral.router.memory.devices import Devices
from llama_corral.router.memory.options import footprint_options
from llama_corral.worker.engine.llama.context import Context
from llama_corral.worker.engine.llama.llama import C
from llama_corral.worker.engine.llama.model import Model
from llama_corral.worker.engine.llama.options import from_settings

COMBINATIONS = [
    {"ctx_size": ctx_size, "parallel": parallel, "kv_unified": kv_unified, "kv_unified_per_slot": per_slot}
    for ctx_size, parallel, kv_unified, per_slot in itertools.product(
        (0, 1, 256, 700, 1000, 1025, 4096), (-1, 1, 3, 7), (None, True), (0, 100, 500)
    )
]


def check(path: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.of(model=str(path), threads=1, **options)
    header = read_header(path)
    model = Model(from_settings(settings, path, None, ""), lambda _: None)
    context = Context(model)
    try:
        pointer = context.pointer
        expected = context_shape(settings).resolve(model.n_ctx_train, is_causal=context.causal)
        found = (C.llama_n_ctx(pointer), C.llama_n_ctx_seq(pointer), C.llama_n_seq_max(pointer))
        assert found == (expected.n_ctx, expected.n_ctx_seq, expected.n_slots), options
        assert C.llama_n_ubatch(pointer) == expected.n_ubatch, options
        assert (context.n_ctx, context.n_ctx_slot) == (expected.n_ctx, expected.n_ctx_slot), options
        assert footprint_options(settings, Devices()).context_of(header) == expected, options
    finally:
        context.close()
        model.close()
    assert not [record for record in caplog.records if "as computed" in record.message]


@pytest.mark.parametrize("name", ["tiny-llama.gguf", "tiny-gemma3.gguf"])
def test_slots_and_context(models: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="corral.engine"):
        for options in COMBINATIONS:
            check(models / name, options, caplog)


@pytest.mark.parametrize("name", ["tiny-llama-long.gguf", "tiny-mamba.gguf", "tiny-bert.gguf", "tiny-llama.gguf"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ctx_size": 1024, "parallel": 2, "batch_size": 64},
        {"ctx_size": 300, "ubatch_size": 700},
        {"ctx_size": 512, "parallel": 4, "ubatch_size": 100, "embeddings": True},
    ],
)
def test_kinds_of_models(models: Path, name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    check(models / name, options, caplog)


async def test_a_draft_model_has_the_context_of_the_main_model(models: Path) -> None:
    """The draft model was trained with a longer context than the main model."""
    options: dict[str, Any] = {"ctx_size": 0, "parallel": 2, "spec_type": ("draft-simple",)}
    main, draft = models / "tiny-llama.gguf", models / "tiny-llama-long.gguf"
    settings = Settings.of(model=str(main), **options)
    async with running(main, draft=draft, **options) as engine, engine.use() as loaded:
        expected = footprint_options(settings, Devices()).context_of(read_header(main))
        assert loaded.core.context.n_ctx == expected.n_ctx
