"""Leases as requests get them: after a load, without one, and with the reason of a failure."""

from __future__ import annotations

import pytest
from lifecycle_tools import router, settle
from llama_corral.common.base.errors import InvalidRequest, ServerFault
from router_tools import preset, presets


async def test_request_loads_waits_and_is_served() -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        assert r.status("a") == "loading"
        assert not client.is_served
        r.launcher["a"].ready()
        await settle()
        assert client.lease is not None
        assert (client.lease.model, client.lease.endpoint) == ("a", r.launcher["a"].endpoint)
        view = r.lifecycle.view("a")
        assert view is not None
        assert (view.status, view.leases, view.info) == ("loaded", 1, {"id": "a"})
        await client.finish()
        assert r.lifecycle.view("a").leases == 0  # type: ignore[union-attr]


async def test_refusals_of_requests() -> None:
    async with router("a", presets=presets(preset("a", aliases=("x", "y")))) as r:
        for name, text in (("", "model name is missing from the request"), ("q", "model 'q' not found")):
            refused = await r.client(name).refused()
            assert (refused.message, type(refused)) == (text, InvalidRequest)
        assert (await r.client("x", autoload=False).refused()).message == "model is not loaded"
        assert r.lifecycle.find("y") == "a"
        assert r.lifecycle.find("Y") is None
        assert not r.launcher.workers


async def test_without_autoload_a_loading_model_still_gets_requests() -> None:
    async with router(autoload=False) as r:
        assert (await r.client("a").refused()).message == "model is not loaded"
        await r.lifecycle.load("a")
        client = r.client("a")
        await settle()
        assert client.is_served
        await client.finish()
        await r.lifecycle.unload("a")
        assert (await r.client("a").refused()).message == "model is not loaded"


async def test_failed_load_refuses_requests_with_its_reason() -> None:
    async with router() as r:
        clients = [r.client("a"), r.client("a")]
        await settle()
        r.launcher["a"].report("failed", message="no such file: a.gguf")
        r.launcher["a"].exit(1)
        for client in clients:
            refused = await client.refused()
            assert isinstance(refused, ServerFault)
            assert refused.message == "model name=a failed to load: no such file: a.gguf"
        view = r.lifecycle.view("a")
        assert view is not None
        assert (view.status, view.is_failed, view.exit_code) == ("unloaded", True, 1)
        assert view.failure == "no such file: a.gguf"


@pytest.mark.parametrize(
    ("code", "lines", "reason"),
    [
        (3, ("one", "two ", "three", "four"), "its process exited with code 3; its last lines: two | three | four"),
        (-11, (), "it crashed: its process was ended by SIGSEGV"),
        (
            -6,
            ("a", "x.c:1: GGML_ASSERT(y) failed"),
            "x.c:1: GGML_ASSERT(y) failed: its process was ended by SIGABRT; "
            "its last lines: a | x.c:1: GGML_ASSERT(y) failed",
        ),
    ],
)
async def test_exit_without_report_while_loading_is_explained_by_the_log(
    code: int, lines: tuple[str, ...], reason: str
) -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        r.launcher["a"].last_lines = lines
        r.launcher["a"].exit(code)
        assert (await client.refused()).message == f"model name=a failed to load: {reason}"
        view = r.lifecycle.view("a")
        assert view is not None
        assert view.exit_code == (code if code > 0 else 1)
        assert view.last_lines == lines


async def test_worker_that_exits_with_0_while_loading() -> None:
    async with router() as r:
        client = r.client("a")
        await settle()
        r.launcher["a"].exit(0)
        assert (await client.refused()).message == "model name=a is not running"


async def test_process_cannot_be_started() -> None:
    async with router() as r:
        r.launcher.refusal = OSError(11, "Resource temporarily unavailable")
        waiting = [r.client("a"), r.client("b")]
        for client in waiting:
            assert "Resource temporarily unavailable" in (await client.refused()).message
        with pytest.raises(ServerFault, match="failed to spawn server instance"):
            await r.lifecycle.load("c")
        r.launcher.refusal = None
        await r.up("a")
        assert r.status("a") == "loaded"


async def test_next_request_tries_a_failed_model_again() -> None:
    async with router() as r:
        first = r.client("a")
        await settle()
        r.launcher["a"].exit(1)
        await first.refused()
        second = r.client("a")
        await settle()
        assert r.status("a") == "loading"
        assert r.lifecycle.view("a").is_failed is False  # type: ignore[union-attr]
        r.launcher["a"].ready()
        await settle()
        await second.finish()


async def test_worker_that_dies_while_it_is_leased() -> None:
    async with router() as r:
        await r.up("a")
        old = r.client("a")
        await settle()
        r.launcher["a"].exit(-6)
        new = r.client("a")
        await settle()
        r.launcher["a"].ready()
        await settle()
        assert new.is_served
        await old.finish()
        assert r.lifecycle.view("a").leases == 1, "the old lease was on another instance"  # type: ignore[union-attr]
        await new.finish()
