"""Views and events of the lifecycle, and its shutdown."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle_tools import LifecycleHarness, drained, router, settle
from llama_corral.common.base.errors import Unavailable
from llama_corral.router.models.events import BACKLOG
from router_tools import preset, presets

# -- views and events --------------------------------------------------------------------------------------------------


async def test_command_line_is_known_before_and_after_the_start() -> None:
    async with router("a", presets=presets(preset("a", "m.gguf", options={"ctx_size": 512}))) as r:
        before = r.lifecycle.views()[0].command_line
        assert before[0] == "fake"
        assert {"--ctx-size", "512", "--model", "m.gguf", "--alias", "a"} <= set(before)
        await r.up("a")
        assert r.lifecycle.views()[0].command_line == (*before, "--host", r.launcher["a"].endpoint)


async def test_secrets_are_passed_in_the_environment_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    async with router("a", presets=presets(preset("a", options={"hf_token": "hf_secret"}))) as r:
        with caplog.at_level("DEBUG"):
            await r.up("a")
        assert r.launcher["a"].environ == {"HF_TOKEN": "hf_secret"}
        assert "hf_secret" not in " ".join(r.launcher["a"].arguments)
        assert "hf_secret" not in " ".join(r.lifecycle.views()[0].command_line)
    assert "hf_secret" not in caplog.text


async def test_events_are_those_of_llama_server() -> None:
    async with router() as r, r.lifecycle.subscribe() as events:
        await r.lifecycle.load("a")
        r.launcher["a"].report("loading", stages=["text_model"], current="text_model", value=0.5)
        r.launcher["a"].report("ready", id="a", meta={})
        r.launcher["a"].report("sleeping")
        r.launcher["a"].report("loading")
        r.launcher["a"].report("ready")
        await r.lifecycle.unload("a")
        r.launcher["a"].leave()
        progress = {"stages": ["text_model"], "current": "text_model", "value": 0.5}
        assert drained(events) == [
            ("a", "model_status", {"status": "loading"}),
            ("a", "status_change", {"status": "loading", "progress": progress}),
            ("a", "status_change", {"status": "loaded", "info": {"id": "a", "meta": {}}}),
            ("a", "status_change", {"status": "sleeping"}),
            ("a", "status_change", {"status": "loading", "progress": {}}),
            ("a", "status_change", {"status": "loaded"}),
            ("a", "status_change", {"status": "unloaded", "exit_code": 0}),
        ]
        await r.lifecycle.reload(presets(preset("a")))
        assert drained(events) == [("*", "models_reload", None)]


async def test_slow_listener_is_cut_off_and_delays_no_other() -> None:
    async with router() as r, r.lifecycle.subscribe() as events, r.lifecycle.subscribe() as other:
        await r.lifecycle.load("a")
        for _ in range(2 * BACKLOG):
            r.launcher["a"].report("loading")
            assert other.get_nowait() is not None
        assert events.qsize() == BACKLOG + 1
        assert [events.get_nowait() for _ in range(BACKLOG + 1)][-1] is None


# -- shutdown ----------------------------------------------------------------------------------------------------------


async def test_close_kills_loading_workers_stops_the_others_and_waits_for_all() -> None:
    r = LifecycleHarness(models_max=2)
    await r.up("a")
    await r.lifecycle.load("b")
    streaming = r.client("a")
    await settle()
    waiting = r.client("c")
    async with r.lifecycle.subscribe() as events:
        await settle()
        closing = asyncio.create_task(r.lifecycle.close())
        await settle()
        assert isinstance(await waiting.refused(), Unavailable)
        assert isinstance(await r.client("a").refused(), Unavailable)
        assert events.get_nowait() is None
    assert r.launcher["b"].kill_asked
    assert r.launcher["a"].stop_asked
    assert not r.launcher["a"].kill_asked
    r.launcher["b"].leave()
    await settle()
    assert not closing.done()
    second = asyncio.create_task(r.lifecycle.close())
    await settle()
    assert r.launcher["a"].kill_asked
    r.launcher["a"].leave()
    await asyncio.gather(closing, second)
    assert r.launcher.is_closed
    await streaming.finish()
    with pytest.raises(Unavailable):
        await r.lifecycle.load("a")
