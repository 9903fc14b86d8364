"""Models whose section has a fault: they are listed, refused with the reason, and usable again after a reload."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from lifecycle_tools import GIB, LifecycleHarness, SizedBudget, router, settle
from llama_corral.common.base.errors import ApiError, NoCapacity, ServerFault
from llama_corral.presets.layer import ConfigValue
from llama_corral.presets.preset import Preset
from msgspec.structs import replace
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


# -- files that are missing, and faults of running models --------------------------------------------------------------


def without_file(name: str = "x", **given: Any) -> Preset:
    file = ConfigValue("/none.gguf", "presets.ini:2: model")
    return preset(name, "/none.gguf", files=(file,), missing=(file,), **given)


def with_file(name: str = "x", **given: Any) -> Preset:
    return preset(name, "/none.gguf", files=(ConfigValue("/none.gguf", "presets.ini:2: model"),), **given)


NO_FILE = "presets.ini:2: model: no such file: /none.gguf"


async def test_a_model_whose_file_is_missing_evicts_no_other_and_is_loaded_when_the_file_is_there() -> None:
    async with router(presets=presets(preset("a"), without_file())) as r:
        await r.up("a")
        view = r.lifecycle.view("x")
        assert view is not None
        assert (view.is_failed, view.is_usable, view.failure) == (True, False, f"cannot be loaded: {NO_FILE}")
        assert (await r.client("x").refused()).message == f"model 'x' {view.failure}"
        assert r.status("a") == "loaded"
        await r.lifecycle.reload(presets(preset("a"), with_file()))
        await settle()
        served = r.client("x")
        await settle()
        r.launcher["a"].leave()
        await settle()
        r.launcher["x"].ready()
        await settle()
        assert served.is_served


async def test_a_running_model_keeps_running_without_its_file_but_is_not_started_again() -> None:
    async with router(presets=presets(with_file())) as r:
        await r.up("x")
        streaming = r.client("x")
        await settle()
        await r.lifecycle.reload(presets(without_file()))
        await r.client("x").finish()
        await streaming.finish()
        view = r.lifecycle.view("x")
        assert view is not None
        assert (view.status, view.is_failed, view.is_usable, view.failure) == ("loaded", False, True, "")
        await r.lifecycle.unload("x")
        late = r.client("x")
        await settle()
        r.launcher["x"].leave()
        assert NO_FILE in (await late.refused()).message


@pytest.mark.parametrize("broken", [unavailable(), without_file()])
async def test_a_startup_model_is_loaded_when_it_can_be_loaded_again(broken: Preset) -> None:
    async with router(presets=presets(broken)) as r:
        await r.lifecycle.start()
        assert not r.launcher.workers
        await r.lifecycle.reload(presets(with_file(load_on_startup=True)))
        await settle()
        r.launcher["x"].ready()
        await settle()
        assert r.status("x") == "loaded"


async def test_the_back_off_ends_when_a_missing_file_is_there() -> None:
    def failures() -> int:
        view = r.lifecycle.view("x")
        assert view is not None
        return view.failures

    async with router(presets=presets(with_file())) as r:
        waiting = r.client("x")
        await settle()
        r.launcher["x"].exit(1)
        await waiting.refused()
        await r.lifecycle.reload(presets(without_file()))
        assert failures() == 1
        await r.lifecycle.reload(presets(with_file()))
        assert failures() == 0


async def test_a_fault_of_a_busy_model_is_shown_and_refuses_new_requests_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "corral.router")
    async with router(presets=presets(preset("x"))) as r:
        await r.up("x")
        streaming = r.client("x")
        await settle()
        await r.lifecycle.reload(presets(unavailable()))
        view = r.lifecycle.view("x")
        assert view is not None
        assert (view.status, view.is_failed, view.failure) == ("loaded", False, f"cannot be loaded: {FAULT}")
        assert not view.is_usable
        assert (await r.client("x").refused()).message == REFUSAL
        assert f"name=x is stopped when its requests have ended: it cannot be loaded again: {FAULT}" in caplog.text
        await r.lifecycle.reload(presets(preset("x")))
        restored = r.lifecycle.view("x")
        assert restored is not None
        assert restored.is_usable
        await r.client("x").finish()
        await r.lifecycle.reload(presets(unavailable()))
        await streaming.finish()
        assert f"stopping name=x: it cannot be loaded again: {FAULT}" in caplog.text
        r.launcher["x"].leave()
        await settle()
        assert r.status("x") == "unloaded"


async def test_the_log_says_why_each_model_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "corral.router")
    async with router(presets=presets(preset("a"), preset("b"), preset("c")), models_max=3) as r:
        await r.up("a", "b", "c")
        variant = replace(preset("b"), base="c", defaults="x")
        reloading = asyncio.create_task(r.lifecycle.reload(presets(preset("c", options={"ctx_size": 8}), variant)))
        await settle()
        for name in "abc":
            r.launcher[name].leave()
        await reloading
    for name, reason in {
        "a": "no source has it any more",
        "b": "it is a variant of c now",
        "c": "its preset was changed",
    }.items():
        assert f"stopping name={name}: {reason}" in caplog.text
    assert "removing name=a" in caplog.text
    assert "removing name=b" not in caplog.text
