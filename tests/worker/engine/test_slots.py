"""The engine on real tiny models: assignment of slots, waiting and cancelling."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_tools import ask, running
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.engine.messages import Finished, Progress, Sampling
from llama_corral.worker.engine.runner import LoadedModel


async def test_choices_share_the_prompt(llama: Path) -> None:
    async with running(llama, parallel=3, kv_unified=True) as engine, engine.use() as loaded:
        seeds = [
            (await ask(loaded, sampling=Sampling(seed=5 + i, temperature=1.5), cache_prompt=False).one()).tokens
            for i in range(3)
        ]
        before = engine.snapshot.totals.prompt_tokens
        results = await ask(loaded, n=3, sampling=Sampling(seed=5, temperature=1.5), cache_prompt=False).all()
        assert [result.index for result in results] == [0, 1, 2]
        assert [result.tokens for result in results] == seeds
        assert len({result.id_slot for result in results}) == 3
        assert engine.snapshot.totals.prompt_tokens - before == results[0].n_prompt
        with pytest.raises(InvalidRequest):
            ask(loaded, n=4)


async def test_choices_wait_for_all_their_slots_and_are_not_overtaken(llama: Path) -> None:
    async with running(llama, parallel=2) as engine, engine.use() as loaded:
        long = ask(loaded, n_predict=60, stream=True)
        await long.until(bool)
        group, late = ask(loaded, n=2, n_predict=4), ask(loaded, n_predict=4)
        await asyncio.gather(long.one(), group.all(), late.one())
        assert len(await group.all()) == 2


async def test_a_request_waits_for_its_requested_slot(llama: Path) -> None:
    async with running(llama, parallel=2) as engine, engine.use() as loaded:
        first = ask(loaded, n_predict=200, id_slot=1, stream=True, sampling=Sampling(ignore_eos=True))
        second = ask(loaded, n_predict=4, id_slot=3)
        third = await ask(loaded, n_predict=4).one()
        assert third.id_slot == 0
        assert not any(isinstance(event, Finished) for event in second.events)
        assert [(await first.one()).id_slot, (await second.one()).id_slot] == [1, 1]


async def test_slot_views_and_metrics_of_a_running_request(llama: Path) -> None:
    async with running(llama, parallel=2) as engine, engine.use() as loaded:
        assert [view.id_task for view in await loaded.slots()] == [None, None]
        request = ask(loaded, n_predict=500, stream=True, settings="mine", sampling=Sampling(ignore_eos=True))
        await request.until(lambda events: len(events) > 5)
        busy = [view for view in await loaded.slots() if view.is_processing]
        assert [(view.settings, view.has_next_token, view.n_remain > 0) for view in busy] == [("mine", True, True)]
        request.ticket.cancel()
        await ask(loaded, n_predict=2).one()
        metrics = engine.metrics()
        assert metrics.totals.predicted_tokens >= 7
        assert metrics.predicted_tokens_per_second > 0
        assert engine.metrics().predicted_tokens_per_second == 0, "nothing since the scrape before"


async def test_prompt_progress_is_reported(llama: Path) -> None:
    async with running(llama, batch_size=32, ubatch_size=32) as engine, engine.use() as loaded:
        request = ask(loaded, [5] * 100, stream=True, return_progress=True)
        await request.one()
        progress = [event for event in request.events if isinstance(event, Progress)]
        assert [event.processed for event in progress] == [0, 32, 64, 96, 100]
        assert {event.total for event in progress} == {100}
        assert progress[0].timings.prompt_ms == 0


async def settled(loaded: LoadedModel) -> None:
    """Wait until the engine has run all commands posted so far."""
    await ask(loaded, n_predict=1).one()


async def test_a_cancelled_stream_frees_its_slot_and_emits_no_more_events(llama: Path) -> None:
    async with running(llama, parallel=1) as engine, engine.use() as loaded:
        request = ask(loaded, n_predict=-1, stream=True, sampling=Sampling(ignore_eos=True))
        await request.until(lambda events: len(events) > 3)
        request.ticket.cancel()
        seen = len(request.events)
        await settled(loaded)
        request.ticket.cancel()
        assert len(request.events) == seen
        assert not any(view.is_processing for view in await loaded.slots())


async def test_a_cancelled_request_leaves_the_queue(llama: Path) -> None:
    async with running(llama, parallel=1) as engine, engine.use() as loaded:
        long = ask(loaded, n_predict=100, stream=True, sampling=Sampling(ignore_eos=True))
        waiting = [ask(loaded, n_predict=-1, sampling=Sampling(ignore_eos=True)) for _ in range(5)]
        for request in waiting:
            request.ticket.cancel()
        await long.one()
        await settled(loaded)
        assert not any(request.events for request in waiting)


async def test_a_long_prefill_is_aborted_by_a_cancel(models: Path) -> None:
    settings = {"ctx_size": 8192, "parallel": 1, "ubatch_size": 64}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        prompt = [1 + i % 400 for i in range(2000)]
        for _ in range(20):  # the abort may occur at any moment
            request = ask(loaded, prompt, stream=True, cache_prompt=False)
            await request.until(bool)
            request.ticket.cancel()
            after = await ask(loaded, prompt[:50], n_predict=4).one()
            assert after.tokens == (await ask(loaded, prompt[:50], n_predict=4, cache_prompt=False).one()).tokens
