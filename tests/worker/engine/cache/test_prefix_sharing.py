"""A prefix that several requests share is computed once, and does not change an answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from engine_tools import ask, running
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.cache.prefix_sharing import MIN_GAIN, Candidate, choose_source
from llama_corral.worker.engine.messages import Begun, Progress, Sampling
from llama_corral.worker.engine.runner import Engine

SHARED = [3 + i * 7 % 400 for i in range(1000)]
PROMPTS = [[*SHARED, *(5 + (i * 31 + k) % 300 for k in range(12))] for i in range(8)]

candidates = st.lists(
    st.builds(Candidate, st.integers(0, 7), st.integers(0, 900), st.integers(0, 900), st.booleans()), max_size=7
)


@given(st.integers(0, 900), candidates, st.integers(1, 1000))
def test_a_source_gains_enough_and_leaves_the_last_token(n_own: int, others: list[Candidate], n_prompt: int) -> None:
    source = choose_source(n_own, others, n_prompt, MIN_GAIN)
    if source is None:
        assert all(min(c.n_computed, n_prompt - 1) - n_own < MIN_GAIN for c in others if c.can_cut)
        return
    assert n_own + MIN_GAIN <= source.n < n_prompt
    of = [c for c in others if c.slot == source.slot]
    assert any(c.can_cut and c.n_computed >= source.n if source.ready else c.n_coming >= source.n for c in of)


def test_waiting_must_gain_more_than_copying_now() -> None:
    ready, coming = Candidate(1, 500), Candidate(2, 0, 500 + MIN_GAIN - 1)
    assert choose_source(0, [ready, coming], 1000, MIN_GAIN) == (1, 500, True)
    assert choose_source(0, [ready, coming._replace(n_coming=500 + MIN_GAIN)], 1000, MIN_GAIN) == (2, 564, False)
    assert choose_source(450, [ready], 1000, MIN_GAIN) is None
    assert choose_source(0, [ready._replace(can_cut=False)], 1000, MIN_GAIN) is None


def computed(engine: Engine) -> int:
    return engine.snapshot.totals.prompt_tokens


async def alone(llama: Path, **settings: Any) -> list[tuple[int, ...]]:
    async with running(llama, **settings) as engine, engine.use() as loaded:
        return [(await ask(loaded, prompt, cache_prompt=False).one()).tokens for prompt in PROMPTS]


@pytest.mark.parametrize("unified", [True, False])
async def test_a_shared_prefix_is_computed_once(models: Path, unified: bool) -> None:
    llama, settings = models / "tiny-llama.gguf", {"parallel": 8, "ctx_size": 10240, "kv_unified": unified}

    expected = await alone(llama, **settings)
    async with running(llama, **settings) as engine, engine.use() as loaded:
        requests = [ask(loaded, prompt, stream=True, return_progress=True) for prompt in PROMPTS]
        results = [await request.one() for request in requests]
        assert [result.tokens for result in results] == expected
        assert computed(engine) == len(PROMPTS[0]) + 7 * 12 <= 1.3 * len(PROMPTS[0])
        assert [result.timings.cache_n for result in results] == [0] + [1000] * 7
        assert [result.timings.prompt_n for result in results] == [1012] + [12] * 7
        for request, result in zip(requests, results, strict=True):
            assert isinstance(request.events[0], Begun)
            first = next(event for event in request.events if isinstance(event, Progress))
            assert first.processed == first.cache == result.timings.cache_n


async def test_a_prompt_is_copied_from_a_generating_slot(models: Path) -> None:
    settings = {"parallel": 2, "ctx_size": 4096, "kv_unified": True}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        long = ask(loaded, PROMPTS[0], n_predict=400, stream=True, sampling=Sampling(temperature=0.0, ignore_eos=True))
        await long.until(lambda events: len(events) > 3)
        before = computed(engine)
        late = await ask(loaded, PROMPTS[1]).one()
        assert (computed(engine) - before, late.timings.cache_n) == (12, 1000)
        assert (await long.one()).n_decoded == 400
        assert late.tokens == (await ask(loaded, PROMPTS[1], cache_prompt=False).one()).tokens


async def test_longer_common_prefixes_are_found_step_by_step(models: Path) -> None:
    other = [9 + i * 11 % 350 for i in range(300)]
    prompts = [[*SHARED, 5, 6, 7], [*SHARED, *other, 8, 9], [*SHARED, *other, 10, 11]]

    settings = {"parallel": 3, "ctx_size": 8192, "kv_unified": True}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        results = await asyncio.gather(*(ask(loaded, prompt).one() for prompt in prompts))
        assert [result.timings.cache_n for result in results] == [0, 1000, 1300]
        assert computed(engine) == 1003 + 302 + 2


@pytest.mark.parametrize("n_steps", [0, 1])
async def test_a_waiting_slot_continues_alone_when_its_leader_is_cancelled(models: Path, n_steps: int) -> None:
    settings = {"parallel": 3, "ctx_size": 8192, "batch_size": 256, "ubatch_size": 64}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        expected = [(await ask(loaded, prompt, cache_prompt=False).one()).tokens for prompt in PROMPTS[:3]]
        for slot in range(3):
            await loaded.erase_slot(slot)
        first = ask(loaded, PROMPTS[0], stream=True, return_progress=True)
        others = [ask(loaded, prompt) for prompt in PROMPTS[1:3]]
        await first.until(lambda events: len(events) > n_steps)
        first.ticket.cancel()
        results = [await request.one() for request in others]
        assert [result.tokens for result in results] == expected[1:]
        assert results[1].timings.cache_n == 1000


async def test_cache_prompt_false_shares_no_prefix(models: Path) -> None:
    settings = {"parallel": 2, "ctx_size": 4096}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        results = await asyncio.gather(*(ask(loaded, p, cache_prompt=False).one() for p in PROMPTS[:2]))
        assert [result.timings.cache_n for result in results] == [0, 0]
        assert computed(engine) == 2024


async def test_shifting_shared_positions_does_not_affect_other_slots(models: Path) -> None:
    """In a unified pool a copied sequence uses the same cells."""

    settings = {
        "parallel": 2,
        "ctx_size": 4096,
        "kv_unified": True,
        "kv_unified_per_slot": 1280,
        "context_shift": True,
    }
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        endless = {"sampling": Sampling(temperature=0.0, ignore_eos=True)}
        expected = [(await ask(loaded, p, n_predict=n, cache_prompt=False, **endless).one()).tokens
                    for p, n in zip(PROMPTS[:2], (600, 200), strict=True)]  # fmt: skip
        for slot in range(2):
            await loaded.erase_slot(slot)
        requests = [ask(loaded, p, n_predict=n, **endless) for p, n in zip(PROMPTS[:2], (600, 200), strict=True)]
        results = [await request.one() for request in requests]
        assert [result.truncated for result in results] == [True, False]
        assert [result.tokens for result in results] == expected
        moved = [*PROMPTS[0][:10], *PROMPTS[0][200:]]
        again = await ask(loaded, moved, id_slot=0, n_cache_reuse=16).one()
        assert again.timings.cache_n > 10
        assert (await ask(loaded, PROMPTS[1], n_predict=200, id_slot=1, **endless).one()).tokens == expected[1]
