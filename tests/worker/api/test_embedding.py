"""Embeddings on real tiny models, alone and in shared batches."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_tools import Request, ask, running, vectors
from llama_corral.common.base.errors import NotSupported, ServerFault
from llama_corral.worker.engine.messages import Embedding


async def test_embeddings_in_one_batch_equal_those_alone(models: Path) -> None:
    async with running(models / "tiny-bert.gguf", embeddings=True, ctx_size=512) as engine, engine.use() as loaded:
        texts = ["the fox", "a lazy dog sleeps", "the fox", "horses"]
        alone = [await vectors(loaded, text) for text in texts]
        before = engine.snapshot.totals.decodes
        together = await asyncio.gather(*(vectors(loaded, text) for text in texts))
        assert engine.snapshot.totals.decodes - before < len(texts)
        for one, other in zip(alone, together, strict=True):
            assert len(one) == 1
            assert one[0] == pytest.approx(other[0], abs=1e-5)
            assert sum(x * x for x in one[0]) == pytest.approx(1.0)
        assert max(abs(x) for x in (await vectors(loaded, "the fox", 0))[0]) == pytest.approx(32760)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
async def test_inputs_of_different_length_do_not_affect_each_other(models: Path, pooling: str) -> None:
    texts = ["the fox and the dog and the sea", "hi", "a lazy dog sleeps", "horses stand by the fence", "x y"]
    settings = {"embeddings": True, "pooling": pooling, "parallel": 4, "kv_unified": False}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        alone = {text: await vectors(loaded, text) for text in texts}
        for first in range(len(texts)):
            order = [*texts[first:], *texts[:first]] * 2
            for text, found in zip(order, await asyncio.gather(*(vectors(loaded, t) for t in order)), strict=True):
                assert found[0] == pytest.approx(alone[text][0], abs=1e-4)


async def test_an_embedding_needs_a_batch_as_long_as_its_input(models: Path) -> None:
    settings = {"embeddings": True, "ubatch_size": 16, "ctx_size": 512}
    async with running(models / "tiny-bert.gguf", **settings) as engine, engine.use() as loaded:
        text = "the quick brown fox " * 10
        n = len(loaded.vocab.tokenize(text, True))
        with pytest.raises(ServerFault, match=rf"input \({n} tokens\) is too large to process\..*size: 16\)"):
            await vectors(loaded, text)
        with pytest.raises(NotSupported, match="does not support logits"):
            ask(loaded)


@pytest.mark.parametrize(("pooling", "n_vectors"), [("mean", 1), ("cls", 1), ("last", 1), ("none", 5)])
async def test_pooling(models: Path, pooling: str, n_vectors: int) -> None:
    settings = {"embeddings": True, "pooling": pooling}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        generation = ask(loaded, n_predict=20)
        request = Request(loaded, Embedding([1, 300, 301, 302, 303]))
        events = await request.until(bool)
        assert len(events[0].vectors) == n_vectors  # type: ignore[union-attr]
        assert (await generation.one()).n_decoded == 20, "during a generation"
