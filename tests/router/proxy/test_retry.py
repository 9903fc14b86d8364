"""Test a load that runs out of memory despite the estimate: one idle model is evicted and the load is retried."""

from __future__ import annotations

import signal

import pytest
from lifecycle_tools import LifecycleHarness, router, settle
from llama_corral.common.base.errors import ServerFault
from llama_corral.router.models.exit_reasons import ran_out_of_memory
from router_tools import preset, presets

NO_MEMORY = "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 17179869184"


async def run_out_of_memory(r: LifecycleHarness, name: str = "c") -> None:
    worker = r.launcher[name]
    worker.last_lines = ("loading", NO_MEMORY)
    worker.report("failed", message="the model could not be loaded")
    worker.exit(1)
    await settle()


async def let_go(r: LifecycleHarness, name: str) -> None:
    assert r.launcher[name].stop_asked
    r.launcher[name].leave()
    await settle()


async def test_one_idle_model_is_evicted_and_the_load_is_retried() -> None:
    async with router(models_max=0) as r:
        await r.up("a", "b")
        first, second = r.client("c"), r.client("c")
        await settle()
        await run_out_of_memory(r)
        assert [worker.name for worker in r.launcher.alive if worker.must_go] == ["a"], "the one used longest ago"
        late = r.client("c")
        await settle()
        assert r.status("c") == "unloaded", "not before it is gone"
        await let_go(r, "a")
        assert r.status("c") == "loading"
        r.launcher["c"].ready()
        await settle()
        assert first.is_served
        assert second.is_served
        assert late.is_served
        for client in (first, second, late):
            await client.finish()
        assert r.status("b") == "loaded"


async def test_the_load_is_retried_once() -> None:
    async with router(models_max=0) as r:
        await r.up("a", "b")
        client = r.client("c")
        await settle()
        await run_out_of_memory(r)
        await let_go(r, "a")
        await run_out_of_memory(r)
        error = await client.refused()
        assert isinstance(error, ServerFault)
        assert "could not be loaded" in error.message
        assert r.status("b") == "loaded"
        view = r.lifecycle.view("c")
        assert view is not None
        assert view.failures == 1
        again = r.client("c")  # a later request may retry once more
        await settle()
        await run_out_of_memory(r)
        await let_go(r, "b")
        await run_out_of_memory(r)
        assert isinstance(await again.refused(), ServerFault)
        view = r.lifecycle.view("c")
        assert view is not None
        assert view.failures == 2


@pytest.mark.parametrize("why", ["no model is loaded", "busy", "pinned", "another reason", "killed by a person"])
async def test_no_retry_without_a_victim_or_for_another_reason(why: str) -> None:
    entries = presets(preset("a", pin=why == "pinned"), preset("c"))
    async with router(models_max=0, presets=entries) as r:
        if why != "no model is loaded":
            await r.up("a")
        user = r.client("a") if why == "busy" else None
        await settle()
        client = r.client("c")
        await settle()
        if why == "another reason":
            r.launcher["c"].report("failed", message="no such file")
            r.launcher["c"].exit(1)
        elif why == "killed by a person":
            await r.lifecycle.unload("c")
            r.launcher["c"].last_lines = (NO_MEMORY,)
            r.launcher["c"].leave()
        else:
            await run_out_of_memory(r)
        await client.refused()
        assert not [worker for worker in r.launcher.alive if worker.must_go]
        if user is not None:
            await user.finish()


async def test_no_retry_if_no_request_waits_any_more() -> None:
    async with router(models_max=0) as r:
        await r.up("a")
        client = r.client("c")
        await settle()
        await run_out_of_memory(r)
        await client.leave()
        await let_go(r, "a")
        assert r.status("c") == "unloaded", "no request waits for it"
        await r.lifecycle.load("b")
        await run_out_of_memory(r, "b")
        assert not r.launcher.alive


async def test_no_retry_if_the_router_shuts_down() -> None:
    async with router(models_max=0) as r:
        await r.up("a")
        client = r.client("c")
        await settle()
        await run_out_of_memory(r)
    assert "shutting down" in (await client.refused()).message


def test_log_lines_that_mean_out_of_memory() -> None:
    assert ran_out_of_memory(1, ["CUDA error: out of memory"])
    assert ran_out_of_memory(-signal.SIGKILL, [], kills_meanwhile=1)
    assert not ran_out_of_memory(-signal.SIGKILL, [])
    assert not ran_out_of_memory(1, ["no such file"])
