"""The prompt cache in host memory, and checkpoints: what is kept, evicted and restored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_tools import ask, running
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.adapters.activation import BASE, Activation
from llama_corral.worker.engine.batching.checkpoints import Checkpoint, CheckpointRules, position_after, usable
from llama_corral.worker.engine.batching.scheduler import SlotFacts
from llama_corral.worker.engine.cache.prompt_cache import PromptCache, should_search_cache

Tokens = list[int]
STATE = np.zeros(100, np.uint8)


def store(cache: PromptCache, tokens: Tokens, activation: Activation = BASE) -> bool:
    return cache.store(tokens, activation, (), STATE.nbytes, lambda: STATE)


def kept(cache: PromptCache) -> list[Tokens]:
    return [entry.tokens for entry in cache.entries]


def test_an_entry_replaces_its_prefixes() -> None:
    cache = PromptCache(None, 1000)
    assert store(cache, [1, 2])
    assert store(cache, [1, 2, 3])
    assert not store(cache, [1, 2, 3])
    assert not store(cache, [1])
    assert store(cache, [1, 3])
    assert kept(cache) == [[1, 2, 3], [1, 3]]
    assert store(cache, [1, 3], Activation((1.0,))), "computed with an adapter: another thing"


def test_only_tokens_before_an_adapters_invocation_are_reusable() -> None:
    cache, invoked = PromptCache(None, 1000), Activation((1.0,), 3)
    assert store(cache, [1, 2, 3, 4], invoked)
    assert not store(cache, [1, 2, 3, 4], invoked), "the same again"
    assert not store(cache, [1, 2, 3, 5, 6], invoked), "no prompt could use more of it"
    assert kept(cache) == [[1, 2, 3, 4]]
    assert store(cache, [1, 2, 3, 4])
    assert len(kept(cache)) == 1
    assert not store(cache, [1, 2, 3, 4, 5], invoked), "the same tokens without the adapter serve as well"


def test_limits_evict_the_oldest_entries() -> None:
    cache = PromptCache(250, 4)
    for n in range(3):
        assert store(cache, [n, n])
    assert kept(cache) == [[1, 1], [2, 2]]
    assert not cache.store([7], BASE, (), 251, lambda: STATE), "too large at all"
    assert not cache.store([7], BASE, (), 1, lambda: None), "could not be read"
    tokens = PromptCache(None, 4)
    for n in range(3):
        store(tokens, [n, n])
        tokens.trim()
    assert kept(tokens) == [[1, 1], [2, 2]]


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12), st.lists(st.integers(0, 2), min_size=1)
)
def test_take_returns_a_better_entry_and_removes_it(stored: list[Tokens], prompt: Tokens) -> None:
    cache = PromptCache(None, 10**6)
    for tokens in stored:
        store(cache, tokens)
    before = kept(cache)
    assert not any(a != b and a == b[: len(a)] for a in before for b in before), "no entry covers another"
    entry = cache.take(1, 10, prompt, BASE)
    if entry is None:
        assert kept(cache) == before
    else:
        n = entry.common(prompt, BASE)
        assert n > 1
        assert n / len(entry.tokens) >= 0.25
        assert sorted([*kept(cache), entry.tokens]) == sorted(before)


@pytest.mark.parametrize(
    ("n_cached", "n_common", "wanted", "threshold", "look"),
    [
        (100, 60, -1, 0.1, False),  # similar, and most of it is kept
        (100, 30, -1, 0.1, True),  # similar, but most of it would be removed
        (100, 5, -1, 0.1, True),  # the least recently used slot
        (0, 0, -1, 0.1, True),
        (100, 5, 2, 0.1, True),  # the requested slot
        (0, 0, 2, 0.1, False),
        (100, 5, 2, 0.0, False),
        (100, 90, -1, 0.0, True),
    ],
)
def test_when_the_cache_is_searched(n_cached: int, n_common: int, wanted: int, threshold: float, look: bool) -> None:
    assert should_search_cache(SlotFacts(0, True, n_cached, n_common, 0.0), 100, wanted, threshold) is look


# -- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint(n_tokens: int, job: int = 0, window: int = 50) -> Checkpoint:
    return Checkpoint(job, n_tokens, max(0, n_tokens - window), n_tokens - 1, STATE)


def test_batches_end_shortly_before_the_prompts_end() -> None:
    rules = CheckpointRules(32, 8192, n_batch=2048, n_ubatch=512)
    assert rules.boundaries(1000) == (484, 996)
    assert not rules.wanted(1000, 0, 484)
    assert not rules.wanted(2000, 100, 300)
    assert rules.wanted(1000, 484, 512)
    assert rules.wanted(1000, 996, 4)
    assert not CheckpointRules(0, 8192, 2048, 512).wanted(1000, 996, 4)


def test_a_full_checkpoint_list_drops_entries() -> None:
    rules = CheckpointRules(4, 100, 2048, 512)
    kept = [checkpoint(n, job=1) for n in (10, 20, 500)]
    assert [c.n_tokens for c in rules.with_another(kept, checkpoint(600, job=2))] == [10, 500, 600]
    assert [c.n_tokens for c in rules.with_another(kept, checkpoint(600, job=1))] == [10, 20, 500, 600]
    assert [c.n_tokens for c in rules.with_another(kept[:2], checkpoint(20, job=1))] == [10, 20]
    many = [checkpoint(n * 1000, job=1) for n in range(1, 5)]
    assert [c.n_tokens for c in rules.with_another(many, checkpoint(9000, job=2))] == [2000, 3000, 4000, 9000]


def test_the_newest_usable_checkpoint_is_chosen() -> None:
    checkpoints = [checkpoint(40), checkpoint(400), checkpoint(900)]
    assert usable(checkpoints, position=800, needed=750) is checkpoints[1]
    assert usable(checkpoints, position=300, needed=250) is checkpoints[0]
    assert usable(checkpoints, position=20, needed=0) is None
    assert position_after(checkpoints[1], 800) == 399
    assert position_after(Checkpoint(0, 400, 399, 399, STATE), 800) == 400, "a recurrent memory's"


# -- on a model --------------------------------------------------------------------------------------------------------

STORY = "Once upon a time there was a miller who had three sons and a mill by the river"
OTHER = "def main(argv): return parse(argv).run()"


@pytest.mark.parametrize("unified", [True, False])
async def test_a_prompt_is_restored_from_host_memory(models: Path, unified: bool) -> None:
    settings = {"parallel": 1, "kv_unified": unified, "cache_ram": 100}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        first = await ask(loaded, STORY).one()
        other = await ask(loaded, OTHER).one()
        again = await ask(loaded, STORY).one()
        assert again.tokens == first.tokens
        assert again.timings.cache_n == first.n_prompt - 1
        assert (await ask(loaded, OTHER).one()).timings.cache_n == other.n_prompt - 1


async def test_without_host_memory_a_prompt_is_computed_again(models: Path) -> None:
    async with running(models / "tiny-llama.gguf", parallel=1, cache_ram=0) as engine, engine.use() as loaded:
        await ask(loaded, STORY).one()
        await ask(loaded, OTHER).one()
        assert (await ask(loaded, STORY).one()).timings.cache_n < 4


@pytest.mark.parametrize(("unified", "n_left"), [(True, 0), (False, 1)])
async def test_idle_slots_are_cleared_in_a_unified_pool(models: Path, unified: bool, n_left: int) -> None:
    settings = {"parallel": 2, "kv_unified": unified, "cache_ram": 100}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        first = await ask(loaded, STORY, id_slot=0).one()
        await ask(loaded, OTHER, id_slot=1).one()
        views = await loaded.slots()
        assert min(views[0].n_prompt_tokens, 1) == n_left
        again = await ask(loaded, STORY).one()
        assert (again.tokens, again.timings.cache_n) == (first.tokens, first.n_prompt - 1)


async def test_shifted_runs_are_reused(models: Path) -> None:
    async with running(models / "tiny-llama.gguf", parallel=1, cache_ram=0) as engine, engine.use() as loaded:
        piece = [40 + i for i in range(50)]
        await ask(loaded, [1, *([7] * 30), *piece, 9], n_predict=1).one()
        moved = [1, 7, 7, *piece, 12, 13]
        result = await ask(loaded, moved, n_predict=1, n_cache_reuse=20).one()
        assert (result.timings.cache_n, result.timings.prompt_n) == (53, 2)
        await ask(loaded, [1, *([7] * 30), *piece, 9], n_predict=1).one()
        assert (await ask(loaded, moved, n_predict=1, n_cache_reuse=51).one()).timings.cache_n == 3


async def test_a_full_pool_fails_running_requests_but_no_later_ones(models: Path) -> None:
    settings = {"parallel": 3, "ctx_size": 256, "kv_unified": True, "cache_prompt": False}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        requests = [ask(loaded, [20 + k + i % 50 for i in range(200)], n_predict=50) for k in range(3)]
        errors = [await request.error() for request in requests]
        assert {error.message for error in errors} == {"Context size has been exceeded."}
        assert (await ask(loaded, STORY).one()).n_decoded == 16
