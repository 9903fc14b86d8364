"""Models whose section has a fault: they are listed, refused with the reason, and usable again after a reload."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_tools import GIB, LifecycleHarness, SizedBudget, router, settle
from llama_corral.common.base.errors import ApiError, NoCapacity, ServerFault
from llama_corral.presets.sources import Preset
from router_tools import preset, presets

FAULT = "presets.ini:3: unknown key 'modle'"
REFUSAL = f"model 'x' cannot be loaded: {FAULT}"


def unavailable(name: str = "x") -> Preset:
    return Preset(name, "preset", unavailable=FAULT)


async def refusal_of_load(r: LifecycleHarness, name: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await r.lifecycle.load(name)
    return caught.value


async def test_everything_that_needs_the_model_is_refused_with_the_reason() -> None:
    async with router(presets=presets(preset("a"), unavailable())) as r:
        view = r.lifecycle.view("x")
        assert view is not None
        assert (view.status, view.is_failed, view.exit_code, view.command_line) == ("unloaded", True, 1, ())
        assert view.failure == f"cannot be loaded: {FAULT}"
        errors = [await r.client("x", autoload=loads).refused() for loads in (True, False)]
        errors.append(await refusal_of_load(r, "x"))
        assert [(type(error), error.message) for error in errors] == [(ServerFault, REFUSAL)] * 3
        assert not r.launcher.workers


async def test_reload_makes_a_repaired_model_available() -> None:
    async with router(presets=presets(unavailable())) as r:
        await r.lifecycle.reload(presets(preset("x")))
        await r.up("x")
        assert r.status("x") == "loaded"


async def test_requests_that_wait_are_refused_when_their_model_becomes_unavailable() -> None:
    async with router(presets=presets(preset("a"), preset("x"))) as r:
        await r.up("a")
        busy, waiting = r.client("a"), r.client("x")
        await settle()
        await r.lifecycle.reload(presets(preset("a"), unavailable()))
        assert (await waiting.refused()).message == REFUSAL
        await busy.finish()
        await settle()
        assert r.status("a") == "loaded", "nothing is evicted for a model that cannot be loaded"


async def test_a_running_model_finishes_its_requests_before_it_becomes_unavailable() -> None:
    async with router(presets=presets(preset("x", options={"ctx_size": 8}))) as r:
        await r.up("x")
        streaming = r.client("x")
        await settle()
        await r.lifecycle.reload(presets(unavailable()))
        waiting = r.client("x")
        await settle()
        assert not r.launcher["x"].must_go
        await streaming.finish()
        r.launcher["x"].leave()
        assert (await waiting.refused()).message == REFUSAL
        assert (await r.client("x").refused()).message == REFUSAL


async def test_an_explicit_load_is_refused_when_its_model_becomes_unavailable() -> None:
    async with router(presets=presets(preset("a"), preset("x"))) as r:
        await r.up("a")
        loading = asyncio.create_task(r.lifecycle.load("x"))
        await settle()
        reload = asyncio.create_task(r.lifecycle.reload(presets(preset("a"), unavailable())))
        await settle()
        r.launcher["a"].leave()
        with pytest.raises(ServerFault, match="cannot be loaded: presets"):
            await loading
        await reload


async def test_a_model_that_cannot_be_loaded_at_startup_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    entries = presets(*(preset(name, load_on_startup=True) for name in ("a", "big", "c")), unavailable())
    budget = SizedBudget(host=8 * GIB, a=1, big=99, c=1)
    async with router(models_max=3, presets=entries, memory_budget=budget) as r:
        budget.free = 8 * GIB
        await r.lifecycle.start()
        assert [worker.name for worker in r.launcher.workers] == ["a", "c"]
        assert "(startup) model big is not loaded: " in caplog.text
    async with router(models_max=3, presets=entries, memory_budget=budget) as r:
        with pytest.raises(NoCapacity):
            await r.lifecycle.start(is_strict=True)
