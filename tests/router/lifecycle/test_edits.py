"""Edits of presets while models load or run: requests wait for the next instance, startup models are loaded again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from lifecycle_tools import GIB, SizedBudget, drained, router, settle
from llama_corral.presets.preset import Preset
from llama_corral.router.library import reload_sources
from llama_corral.router.placement.device_split import Need
from llama_corral.router.placement.memory_amounts import Space
from router_http import gateway
from router_tools import PATIENCE, preset, presets, until

CHANGED = preset("a", options={"ctx_size": 64})


async def test_an_edit_during_a_load_lets_its_requests_wait_for_the_next_instance() -> None:
    async with router() as r:
        first = r.client("a")
        await settle()
        second = r.client("a")
        await settle()
        reload = asyncio.create_task(r.lifecycle.reload(presets(CHANGED, preset("b"))))
        await settle()
        assert r.launcher["a"].kill_asked
        async with r.lifecycle.subscribe() as events:
            r.launcher["a"].leave()
            await reload
            assert ("a", "status_change", {"status": "unloaded", "exit_code": 0}) in drained(events), "not a failure"
        await settle()
        assert "64" in r.launcher["a"].arguments
        third = r.client("a")
        r.launcher["a"].ready()
        await settle()
        for client in (first, second, third):
            await client.finish()
        assert len(r.launcher.workers) == 2


async def test_a_request_over_http_outlives_an_edit_during_its_load(tmp_path: Path) -> None:
    async with gateway(preset("m", f"gate={tmp_path / 'never'}"), models_max=1) as g:
        requests = [asyncio.create_task(g.chat("m")) for _ in range(3)]
        await until(lambda: any(view.status == "loading" and view.waiting == 3 for view in g.lifecycle.views()))
        g.sources["m"] = preset("m", "chunks=1")
        assert (await g.client.get("/models?reload=1")).status_code == 200
        answers = await asyncio.gather(*requests)
        assert [answer.status_code for answer in answers] == [200] * 3, [answer.text for answer in answers]


async def test_a_load_that_fails_after_an_edit_is_tried_with_the_new_preset() -> None:
    """The edit may be the repair."""
    async with router(presets=presets(preset("a"), preset("b")), models_max=0) as r:
        await r.up("b")
        r.launcher["b"].report("sleeping")
        client = r.client("a")
        await settle()
        reload = asyncio.create_task(r.lifecycle.reload(presets(CHANGED, preset("b", options={"ctx_size": 64}))))
        await settle()
        r.launcher["a"].exit(1)  # just before the signal
        assert not reload.done(), "it waits for the other one"
        r.launcher["b"].leave()
        await reload
        await settle()
        r.launcher["a"].ready()
        await settle()
        await client.finish()
        view = r.lifecycle.view("a")
        assert view is not None
        assert view.failures == 0


@pytest.mark.parametrize("more", [{}, {"load_on_startup": True}])
async def test_an_edit_that_breaks_the_section_during_a_load_refuses_its_requests(more: dict[str, bool]) -> None:
    async with router("a", "b") as r:
        client = r.client("a")
        await settle()
        broken = preset("a", unavailable="models.ini:3: unknown key", **more)
        reload = asyncio.create_task(r.lifecycle.reload(presets(broken, preset("b"))))
        await settle()
        r.launcher["a"].leave()
        await reload
        assert (await client.refused()).message == "model 'a' cannot be loaded: models.ini:3: unknown key"
        await settle()
        assert not r.launcher.alive


async def test_sources_that_were_read_first_are_never_applied_last() -> None:
    async with router("a") as r:
        may_go_on, is_reading = threading.Event(), threading.Event()

        def read_slowly() -> dict[str, Preset]:
            is_reading.set()
            may_go_on.wait(PATIENCE)
            return presets(preset("old"))

        first = asyncio.create_task(reload_sources(read_slowly, r.lifecycle))
        await until(is_reading.is_set)
        second = asyncio.create_task(reload_sources(lambda: presets(preset("new")), r.lifecycle))
        await settle()
        may_go_on.set()
        await asyncio.gather(first, second)
        assert [view.name for view in r.lifecycle.views()] == ["new"]


async def test_sources_that_were_read_are_applied_although_the_client_has_left() -> None:
    async with router("a") as r:
        may_go_on, is_reading = threading.Event(), threading.Event()

        def read_slowly() -> dict[str, Preset]:
            is_reading.set()
            may_go_on.wait(PATIENCE)
            return presets(preset("new"))

        asked = asyncio.create_task(reload_sources(read_slowly, r.lifecycle))
        await until(is_reading.is_set)
        asked.cancel()
        may_go_on.set()
        await until(lambda: [view.name for view in r.lifecycle.views()] == ["new"])
        assert asked.cancelled()


async def test_several_edits_during_a_load_and_one_that_removes_the_model() -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        edits = [presets(preset("a", options={"ctx_size": size})) for size in (1, 2, 3)]
        for edit in edits:
            reload = asyncio.create_task(r.lifecycle.reload(edit))
            await settle()
            r.launcher["a"].leave()
            await reload
            await settle()
        assert "3" in r.launcher["a"].arguments
        reload = asyncio.create_task(r.lifecycle.reload({}))
        await settle()
        r.launcher["a"].leave()
        await reload
        assert (await client.refused()).message == "model 'a' not found"


async def test_the_memory_of_a_changed_preset_is_estimated_before_its_load() -> None:
    budget = SizedBudget(8 * GIB, a=2, b=5)
    async with router(presets=presets(preset("a"), preset("b")), models_max=0, memory_budget=budget) as r:
        await r.up("b")
        client = r.client("a")
        await settle()
        budget.needs["a"] = Need(Space(6 * GIB))
        reload = asyncio.create_task(r.lifecycle.reload(presets(CHANGED, preset("b"))))
        await settle()
        r.launcher["a"].leave()
        await reload
        await settle()
        assert r.launcher["b"].stop_asked, "with its new size there is no room for both"
        r.launcher["b"].leave()
        await settle()
        r.launcher["a"].ready()
        await settle()
        await client.finish()


@pytest.mark.parametrize("moment", ["loading", "idle", "busy", "sleeping"])
async def test_a_model_loaded_on_startup_is_loaded_again_when_its_preset_changes(moment: str) -> None:
    async with router(presets=presets(preset("a", load_on_startup=True), preset("b"))) as r:
        await r.lifecycle.start()
        if moment != "loading":
            r.launcher["a"].ready()
        if moment == "sleeping":
            r.launcher["a"].report("sleeping")
        client = r.client("a") if moment == "busy" else None
        await settle()
        edited = preset("a", options={"ctx_size": 64}, load_on_startup=True)
        reload = asyncio.create_task(r.lifecycle.reload(presets(edited, preset("b"))))
        await settle()
        if client is not None:
            await client.finish()
        r.launcher["a"].leave()
        await reload
        await settle()
        assert "64" in r.launcher["a"].arguments
        r.launcher["a"].ready()
        await r.lifecycle.unload("a")
        r.launcher["a"].leave()
        await settle()
        assert not r.launcher.alive, "it is loaded again only once"


async def test_an_edited_startup_model_evicts_no_other_model_and_is_loaded_when_there_is_room() -> None:
    async with router(presets=presets(preset("a", load_on_startup=True), preset("b"))) as r:
        await r.lifecycle.start()
        r.launcher["a"].ready()
        edited = preset("a", options={"ctx_size": 64}, load_on_startup=True)
        reload = asyncio.create_task(r.lifecycle.reload(presets(edited, preset("b"))))
        await settle()
        client = r.client("b")
        await settle()
        r.launcher["a"].leave()
        await reload
        await settle()
        r.launcher["b"].ready()
        await client.finish()
        await settle()
        assert [worker.name for worker in r.launcher.alive] == ["b"]
        await r.lifecycle.unload("b")
        r.launcher["b"].leave()
        await settle()
        assert [worker.name for worker in r.launcher.alive] == ["a"]


async def test_a_startup_model_that_is_up_or_gone_already_does_not_end_the_start() -> None:
    entries = [preset(name, load_on_startup=True) for name in ("a", "b", "c")]
    async with router(presets=presets(*entries), models_max=0) as r:
        client = r.client("b")
        await settle()
        await r.lifecycle.reload(presets(entries[1], entries[2]))
        await r.lifecycle.start()
        assert [worker.name for worker in r.launcher.alive] == ["b", "c"]
        await client.leave()


async def test_a_request_for_a_model_that_is_unloaded_while_it_loads_is_told_so() -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        await r.lifecycle.unload("a")
        r.launcher["a"].leave()
        told = (await client.refused()).message
        assert told == "model name=a failed to load: it was stopped while it loaded: unload was requested"
