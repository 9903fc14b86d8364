"""Requests that would abort the process in llama.cpp, on real tiny models: the engine rejects or avoids them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_tools import ask, running, vectors
from llama_corral.common.base.errors import NotSupported
from llama_corral.worker.engine.messages import Sampling


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 1},
        {"batch_size": 2, "parallel": 8},
        {"batch_size": 2, "parallel": 8, "embeddings": True},
        {"ubatch_size": 1},
        {"batch_size": 4096, "ctx_size": 256, "parallel": 1},
        {"ctx_size": 1},
        {"parallel": 256, "kv_unified": True},
    ],
)
async def test_inconsistent_sizes_do_not_abort(llama: Path, settings: dict[str, Any]) -> None:
    async with running(llama, **settings) as engine, engine.use() as loaded:
        requests = [ask(loaded, f"number {i}", n_predict=5) for i in range(9)]
        assert [(await request.one()).n_decoded for request in requests] == [5] * 9


async def test_a_huge_penalty_history_does_not_abort(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        huge = 2**31 - 1
        sampling = Sampling(repeat_penalty=1.1, repeat_last_n=huge, dry_multiplier=0.5, dry_penalty_last_n=huge)
        assert (await ask(loaded, sampling=sampling).one()).n_decoded == 16


async def test_choices_copy_whole_sequences_when_the_pool_is_split(llama: Path) -> None:
    async with running(llama, parallel=3, kv_unified=False) as engine, engine.use() as loaded:
        results = await ask(loaded, [1, *range(270, 320)], n=3).all()
        assert [result.n_decoded for result in results] == [16] * 3


async def test_an_embedding_without_embeddings_enabled_is_rejected(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        with pytest.raises(NotSupported):
            await vectors(loaded, "the fox")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(logit_bias=tuple((token, float("-inf")) for token in range(512))),
        Sampling(logit_bias=((-5, 1.0), (2**31 - 1, 1.0))),
        Sampling(samplers=()),
        Sampling(temperature=float("inf")),
        Sampling(top_k=2**31 - 1, min_keep=2**31 - 1, n_probs=2**31 - 1),
        Sampling(mirostat=2, mirostat_tau=-1e30, mirostat_eta=1e30),
        Sampling(mirostat=1, mirostat_tau=0.0),
        Sampling(dry_multiplier=1.0, dry_sequence_breakers=("", "x" * 100, "\n"), dry_base=1e30, dry_allowed_length=0),
        Sampling(xtc_probability=1.0, xtc_threshold=0.0),
    ],
)
async def test_extreme_sampling_parameters_do_not_abort(llama: Path, sampling: Sampling) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        assert (await ask(loaded, sampling=sampling).one()).n_decoded >= 1
