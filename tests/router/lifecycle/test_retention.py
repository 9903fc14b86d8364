"""How long models are kept: pins, `ttl`, requests with `keep_alive`, and refusals when all places are pinned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from lifecycle_tools import settle
from llama_corral.common.base.errors import NoCapacity
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.placement.placement import Retention
from memory_workers import InProcessLauncher
from router_tools import preset, presets, until

PINNED = Retention(pinned=True)
KEPT = Retention(kept=True)


class Router:
    """A lifecycle with a clock that only a test changes."""

    def __init__(self, models_max: int, *entries: Any) -> None:
        self.now = 1000.0
        self.launcher = InProcessLauncher()
        self.lifecycle = Lifecycle(
            presets(*entries), self.launcher, models_max=models_max, autoload=True, clock=lambda: self.now
        )

    async def use(self, model: str, *, seconds: float = 0.0, **options: Any) -> None:
        """Do one request."""
        task = asyncio.create_task(self._use(model, seconds, options))
        await settle()
        view = self.lifecycle.view(model)
        if not task.done() and view is not None and view.status == "loading":
            self.launcher[model].ready()
        await task
        await settle()

    async def _use(self, model: str, seconds: float, options: dict[str, Any]) -> None:
        async with self.lifecycle.lease(model, **options):
            self.pass_by(seconds)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.lifecycle.unload_expired()

    def goes(self, model: str) -> bool:
        return self.launcher[model].must_go

    def expires_in(self, model: str) -> float | None:
        view = self.lifecycle.view(model)
        assert view is not None
        return view.expires_in


@asynccontextmanager
async def router(*entries: Any, models_max: int = 2) -> AsyncIterator[Router]:
    made = Router(models_max, *entries)
    yield made
    closing = asyncio.create_task(made.lifecycle.close())
    await settle()
    for worker in made.launcher.alive:
        worker.leave()
    await closing


async def test_an_idle_model_is_unloaded_when_its_ttl_is_over() -> None:
    async with router(preset("a", ttl=60.0), preset("b")) as it:
        await it.use("a", seconds=100)
        await it.use("b")
        assert (it.expires_in("a"), it.expires_in("b")) == (60, None)
        it.pass_by(59)
        assert not it.goes("a")
        await it.use("a")
        it.pass_by(59)
        assert not it.goes("a"), "it was used in between"
        async with it.lifecycle.lease("a", touch=False):
            it.pass_by(5)
            assert not it.goes("a"), "it is busy"
        assert it.goes("a"), "a mere look at it keeps it no longer"
        it.pass_by(1e6)
        assert not it.goes("b")


async def test_the_timer_unloads_without_a_request() -> None:
    launcher = InProcessLauncher()
    lifecycle = Lifecycle(presets(preset("a", ttl=0.01)), launcher, models_max=1, autoload=True)
    await lifecycle.load("a")
    launcher["a"].ready()
    await until(lambda: launcher["a"].must_go)
    launcher["a"].leave()
    await lifecycle.close()


async def test_a_request_sets_the_retention_and_the_last_one_counts() -> None:
    async with router(preset("a", ttl=60.0)) as it:
        await it.use("a", retention=Retention(ttl=300))
        await it.use("a")
        assert it.expires_in("a") == 300, "a request without a retention changes nothing"
        await it.use("a", retention=PINNED)
        assert it.expires_in("a") is None
        it.pass_by(1e6)
        assert not it.goes("a")
        await it.use("a", retention=Retention(ttl=0.0))
        assert it.goes("a")
        it.launcher["a"].leave()
        await it.use("a")
        assert it.expires_in("a") == 60, "a new instance begins with its preset's"


async def test_both_of_two_concurrent_requests_end_before_the_unload() -> None:
    async with router(preset("a")) as it:
        await it.use("a")
        async with it.lifecycle.lease("a"):
            await it.use("a", retention=Retention(ttl=0.0))
            assert not it.goes("a")
        assert it.goes("a")


async def test_a_pin_of_the_preset_overrides_requests() -> None:
    async with router(preset("a", pin=True, ttl=5.0), preset("b"), models_max=1) as it:
        await it.use("a", retention=Retention(ttl=0.0))
        it.pass_by(1e6)
        assert not it.goes("a")
        it.lifecycle.unload_when_idle("a")
        assert it.goes("a"), "asked for by name it goes all the same"


async def test_a_kept_model_is_evicted_last_and_never_expires() -> None:
    async with router(preset("a", ttl=5.0), preset("b"), preset("c"), preset("d")) as it:
        await it.use("a", retention=KEPT)
        it.pass_by(1e6)
        assert (it.goes("a"), it.expires_in("a")) == (False, None)
        await it.use("b")
        waiting = asyncio.create_task(it._use("c", 0, {}))
        await settle()
        assert (it.goes("a"), it.goes("b")) == (False, True), "b was used last, but a is kept"
        it.launcher["b"].leave()
        await settle()
        it.launcher["c"].ready()
        await waiting
        async with it.lifecycle.lease("c"):
            waiting = asyncio.create_task(it._use("d", 0, {}))
            await settle()
            assert it.goes("a"), "c is busy"
            it.launcher["a"].leave()
            await settle()
            it.launcher["d"].ready()
            await waiting


async def test_a_load_evicts_a_kept_model_if_there_is_no_other() -> None:
    async with router(preset("a"), preset("b"), models_max=1) as it:
        await it.use("a", retention=KEPT)
        loading = asyncio.create_task(it.lifecycle.load("b"))
        await settle()
        assert it.goes("a")
        it.launcher["a"].leave()
        await loading


async def test_unload_when_idle_waits_for_running_requests() -> None:
    async with router(preset("a")) as it:
        it.lifecycle.unload_when_idle("a")  # not running: no error
        await it.use("a")
        async with it.lifecycle.lease("a"):
            it.lifecycle.unload_when_idle("a")
            assert not it.goes("a")
        assert it.goes("a")


async def test_pinned_models_are_not_evicted_and_others_are() -> None:
    async with router(preset("a"), preset("b"), preset("c")) as it:
        await it.use("a", retention=PINNED)
        it.now += 1
        await it.use("b")
        waiting = asyncio.create_task(it._use("c", 0, {}))
        await settle()
        assert (it.goes("a"), it.goes("b")) == (False, True), "b was used last, but a is pinned"
        it.launcher["b"].leave()
        await settle()
        it.launcher["c"].ready()
        await waiting


async def test_with_all_places_pinned_other_models_are_refused_immediately() -> None:
    async with router(preset("a"), preset("b"), preset("c")) as it:
        await it.use("a", retention=PINNED)
        await it.use("b", retention=PINNED)
        why = r"model 'c' cannot be loaded: pinned models use all 2 places \(--models-max\): a, b"
        with pytest.raises(NoCapacity, match=why):
            await it.use("c")
        with pytest.raises(NoCapacity, match=why):
            await it.lifecycle.load("c")
        await it.use("b", retention=Retention(ttl=300))
        waiting = asyncio.create_task(it._use("c", 0, {}))
        await settle()
        it.launcher["b"].leave()
        await settle()
        it.launcher["c"].ready()
        await waiting


async def test_waiting_requests_are_refused_when_the_last_place_is_pinned() -> None:
    async with router(preset("a"), preset("b"), models_max=1) as it:
        await it.use("a")
        async with it.lifecycle.lease("a"):
            waiting = asyncio.create_task(it._use("b", 0, {}))
            await settle()
            assert not waiting.done()
            async with it.lifecycle.lease("a", retention=PINNED):
                pass
        with pytest.raises(NoCapacity):
            await waiting


async def test_a_reload_changes_pins_and_ttls_without_a_restart() -> None:
    async with router(preset("a"), preset("b"), models_max=2) as it:
        await it.use("a")
        await it.use("b")
        await it.lifecycle.reload(presets(preset("a", ttl=10.0), preset("b", pin=True)))
        assert it.expires_in("a") == 10
        it.pass_by(10)
        assert (it.goes("a"), it.goes("b")) == (True, False)


async def test_a_model_sleeps_first_and_is_unloaded_later() -> None:
    """Both times begin with its last use, and waking up restarts them."""

    async with router(preset("a", ttl=60.0)) as it:
        await it.use("a")
        it.pass_by(20)
        it.launcher["a"].report("sleeping")
        assert it.expires_in("a") == 40, "going to sleep is no use"
        it.pass_by(30)
        async with it.lifecycle.lease("a"):
            it.launcher["a"].report("loading")
            it.launcher["a"].report("ready")
        assert it.expires_in("a") == 60
        it.pass_by(20)
        it.launcher["a"].report("sleeping")
        it.pass_by(39)
        assert not it.goes("a")
        it.pass_by(1)
        assert it.goes("a")


async def test_a_model_whose_ttl_is_over_before_it_sleeps_is_unloaded() -> None:
    async with router(preset("a", ttl=5.0)) as it:
        await it.use("a")
        it.pass_by(5)
        assert it.goes("a")
        it.launcher["a"].report("sleeping")  # while it is stopping
        it.launcher["a"].leave()
        await it.use("a")
        assert it.expires_in("a") == 5
