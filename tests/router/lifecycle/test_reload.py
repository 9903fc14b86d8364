"""Changed presets: which workers end, when, and what happens to requests meanwhile."""

from __future__ import annotations

import asyncio

from lifecycle_tools import router, settle
from router_tools import preset, presets


async def test_reload_restarts_only_changed_models() -> None:
    same = preset("a", options={"ctx_size": 512})
    async with router(models_max=0, presets=presets(same, preset("b"), preset("c"), preset("d"))) as r:
        await r.up("a", "b", "c")
        relabelled = preset("a", options={"ctx_size": 512}, aliases=("x",), tags=("new",), stop_timeout=3.0)
        changed = preset("b", options={"ctx_size": 1024})
        reload = asyncio.create_task(r.lifecycle.reload(presets(relabelled, changed, preset("e"))))
        await settle()
        assert not r.launcher["a"].must_go
        assert r.launcher["b"].stop_asked
        assert r.launcher["c"].stop_asked
        assert not reload.done()
        r.launcher["b"].leave()
        r.launcher["c"].leave()
        await reload
        assert [view.name for view in r.lifecycle.views()] == ["a", "b", "e"]
        assert r.lifecycle.find("x") == "a"
        assert "1024" in r.lifecycle.views()[1].command_line


async def test_reload_neither_waits_for_streams_nor_breaks_them() -> None:
    async with router() as r:
        await r.up("a")
        streaming = r.client("a")
        await settle()
        await r.lifecycle.reload(presets(preset("a", options={"ctx_size": 64})))
        assert not r.launcher["a"].must_go
        new = r.client("a")
        await settle()
        assert not new.is_served
        await streaming.finish()
        assert r.launcher["a"].stop_asked
        r.launcher["a"].leave()
        await settle()
        assert "64" in r.launcher["a"].arguments
        r.launcher["a"].ready()
        await settle()
        await new.finish()


async def test_reload_that_brings_the_old_preset_back_ends_a_retirement() -> None:
    async with router() as r:
        await r.up("a")
        streaming = r.client("a")
        await settle()
        await r.lifecycle.reload({})
        waiting = r.client("a")
        await settle()
        await r.lifecycle.reload(presets(preset("a")))
        await settle()
        assert waiting.is_served
        await waiting.finish()
        await streaming.finish()
        assert not r.launcher["a"].must_go


async def test_reload_drops_a_busy_model_when_it_is_idle() -> None:
    async with router() as r:
        await r.up("a")
        streaming = r.client("a")
        await settle()
        await r.lifecycle.reload(presets(preset("b")))
        waiting = r.client("a")
        await settle()
        await streaming.finish()
        r.launcher["a"].leave()
        assert (await waiting.refused()).message == "model 'a' not found"
        assert [view.name for view in r.lifecycle.views()] == ["b"]


async def test_nothing_starts_during_a_reload() -> None:
    async with router(models_max=2) as r:
        await r.up("a")
        reload = asyncio.create_task(r.lifecycle.reload(presets(preset("b"), preset("c"))))
        await settle()
        queued = r.client("b")
        command = asyncio.create_task(r.lifecycle.load("c"))
        await settle()
        assert len(r.launcher.workers) == 1
        r.launcher["a"].leave()
        await reload
        await command
        await settle()
        assert {worker.name for worker in r.launcher.alive} == {"b", "c"}
        r.launcher["b"].ready()
        await settle()
        await queued.finish()


async def test_reload_clears_a_failure() -> None:
    async with router() as r:
        await r.lifecycle.load("a")
        r.launcher["a"].exit(1)
        await r.lifecycle.reload(presets(preset("a")))
        assert not r.lifecycle.views()[0].is_failed
