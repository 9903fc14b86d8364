"""The engine on real tiny models: sleep, wake and close."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from engine_tools import ask, asleep, running
from llama_corral.common.base.errors import ApiError, ServerFault
from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.worker.engine.messages import Sampling


async def test_sleep_and_wake(llama: Path) -> None:
    reports: list[WorkerReport] = []
    async with running(llama, reports, sleep_idle_seconds=1) as engine:
        async with engine.use() as loaded:
            first = await ask(loaded).one()
        await asleep(engine)
        totals = engine.snapshot.totals
        assert engine.metrics().totals.predicted_tokens == totals.predicted_tokens == 16
        async with engine.use() as loaded:
            assert not engine.is_sleeping
            assert (await ask(loaded).one()).tokens == first.tokens
        assert engine.snapshot.totals.predicted_tokens == 32, "totals outlive a sleep"
        states = [(report.state, bool(report.payload)) for report in reports if report.state != "loading"]
        assert states == [("sleeping", False), ("ready", False)]
        assert [bool(report.payload) for report in reports if report.state == "loading"][-1] is False


async def test_a_model_in_use_does_not_sleep(llama: Path) -> None:
    async with running(llama, sleep_idle_seconds=1) as engine, engine.use() as loaded:
        async with engine.use():
            pass
        await asyncio.sleep(1.2)
        assert not engine.is_sleeping
        assert (await ask(loaded).one()).n_decoded == 16


async def test_closing_fails_running_requests(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        request = ask(loaded, n_predict=-1, stream=True, sampling=Sampling(ignore_eos=True))
        await request.until(bool)
        await engine.close()
        assert isinstance(await request.error(), ApiError)


async def test_a_request_that_outlives_its_block_is_told_why_it_ended(llama: Path) -> None:
    async with running(llama) as engine:
        engine.set_idle_timeout(0)
        async with engine.use() as loaded:
            request = ask(loaded, n_predict=-1, stream=True, sampling=Sampling(ignore_eos=True))
        assert (await request.error()).message == "the model is going to sleep"


async def test_a_failed_reload_is_reported_and_tried_again(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    shutil.copy(llama, file)
    async with running(file, sleep_idle_seconds=1) as engine:
        await asleep(engine)
        file.rename(tmp_path / "away.gguf")
        with pytest.raises(ServerFault, match=r"could not be loaded again: .*No such file"):
            async with engine.use():
                pass
        assert engine.is_sleeping
        (tmp_path / "away.gguf").rename(file)
        async with engine.use() as loaded:
            assert (await ask(loaded).one()).n_decoded == 16
