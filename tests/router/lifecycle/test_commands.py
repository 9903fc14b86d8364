"""Loads and unloads by command, and loads at the start."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_tools import LifecycleHarness, router, settle
from llama_corral.common.base.errors import ConfigError, InvalidRequest, NotFound, ServerFault, Unavailable
from router_tools import preset, presets, until


async def test_refused_commands_have_the_errors_of_llama_server() -> None:
    async with router(models_max=2) as r:
        for command, error, text in (
            (r.lifecycle.load("q"), NotFound, "model is not found"),
            (r.lifecycle.unload("q"), InvalidRequest, "model is not found"),
            (r.lifecycle.unload("a"), InvalidRequest, "model is not running"),
        ):
            with pytest.raises(error, match=text):
                await command
        await r.lifecycle.load("a")
        with pytest.raises(InvalidRequest, match="model is already running"):
            await r.lifecycle.load("a")
        r.launcher["a"].ready()
        await r.up("b")
        busy = [r.client("a"), r.client("b")]
        await settle()
        with pytest.raises(ServerFault, match="model limit reached, try again later"):
            await r.lifecycle.load("c")
        for client in busy:
            await client.finish()


async def test_load_at_the_limit_evicts_the_least_recently_used_and_waits_for_it() -> None:
    async with router(models_max=2) as r:
        await r.up("a", "b")
        again = r.client("a")
        await settle()
        await again.finish()
        loading = asyncio.create_task(r.lifecycle.load("c"))
        await settle()
        assert r.launcher["b"].stop_asked
        assert not loading.done()
        r.launcher["b"].leave()
        await loading
        assert r.status("c") == "loading"


@pytest.mark.parametrize("why", ["unload", "eviction", "failing unload", "unload of a loading model"])
async def test_a_load_of_a_stopping_model_waits_for_its_end(why: str) -> None:
    async with router(models_max=2) as r:
        if why == "unload of a loading model":
            await r.lifecycle.load("a")
        else:
            await r.up("a", "b")
        if why == "eviction":
            evicting = asyncio.create_task(r.lifecycle.load("c"))
            await settle()
        else:
            await r.lifecycle.unload("a")
        before = r.launcher["a"]
        loading = asyncio.create_task(r.lifecycle.load("a"))
        await settle()
        assert (loading.done(), r.launcher["a"] is before) == (False, True)
        before.exit(1 if why == "failing unload" else 0)
        if why == "eviction":
            await evicting
            await settle()
            assert r.launcher["b"].stop_asked, "it needs a place, as any load does"
            r.launcher["b"].leave()
        await loading
        assert r.launcher["a"] is not before
        assert r.status("a") == "loading"


async def test_a_load_that_waits_for_the_end_of_a_worker_may_be_refused() -> None:
    async with router(models_max=2) as r:
        await r.up("a", "b")
        for name in ("a", "b"):
            await r.lifecycle.unload(name)
        gone, closed = (asyncio.create_task(r.lifecycle.load(name)) for name in ("a", "b"))
        left = asyncio.create_task(r.lifecycle.load("b"))
        await settle()
        reloading = asyncio.create_task(r.lifecycle.reload(presets(preset("b"))))
        left.cancel()
        await settle()
        r.launcher["a"].leave()
        await reloading
        with pytest.raises(NotFound):
            await gone
        r.lifecycle.stop_serving()
        with pytest.raises(Unavailable):
            await closed


async def test_load_by_command_serves_queued_requests() -> None:
    async with router(models_max=2) as r:
        head, behind = r.client("a"), r.client("b")
        await settle()
        assert [worker.name for worker in r.launcher.workers] == ["a"]
        await r.lifecycle.load("b")
        r.launcher["b"].ready()
        await settle()
        assert behind.is_served
        assert not head.is_served
        r.launcher["a"].ready()
        await settle()
        await head.finish()
        await behind.finish()
        assert len(r.launcher.workers) == 2


async def test_worker_is_killed_after_its_stop_timeout() -> None:
    async with router("a", presets=presets(preset("a", stop_timeout=0.01))) as r:
        await r.up("a")
        await r.lifecycle.unload("a")
        assert not r.launcher["a"].kill_asked
        await until(lambda: r.launcher["a"].kill_asked)
        r.launcher["a"].leave()
        view = r.lifecycle.view("a")
        assert view is not None
        assert (view.is_failed, view.exit_code) == (True, 1)


async def test_startup_models() -> None:
    entries = presets(preset("a"), preset("c", load_on_startup=True), preset("b", load_on_startup=True))
    with pytest.raises(ConfigError, match=r"load on startup \(2\) exceeds models_max \(1\)"):
        LifecycleHarness(presets=entries, models_max=1)

    for models_max in (2, 0):
        async with router(presets=entries, models_max=models_max) as r:
            await r.lifecycle.start()
            assert [worker.name for worker in r.launcher.workers] == ["b", "c"]


async def test_reports_without_an_allowed_transition_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with router() as r:
        await r.lifecycle.load("a")
        r.launcher["a"].report("sleeping")
        assert r.status("a") == "loading"
        r.launcher["a"].ready()
        r.launcher["a"].report("loading")
        assert r.status("a") == "loaded"
    assert "no transition from loading to sleeping" in caplog.text
