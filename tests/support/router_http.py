"""Runs a router on a real port with fake workers, in the test's event loop, and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from llama_corral.common.web.listen import listen
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.preset import Preset
from llama_corral.router import app
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.memory.budget import UNLIMITED, MemoryBudget
from llama_corral.router.process.launcher import Launcher
from router_tools import PATIENCE, fake_launcher, presets


@dataclass
class Gateway:
    client: httpx.AsyncClient
    lifecycle: Lifecycle
    port: int
    sources: dict[str, Preset]
    """The presets that a reload reads; the test changes them."""
    source_error: Exception | None = None

    async def chat(self, model: str, **given: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={"model": model, **given})

    async def events_of(self, model: str) -> list[dict[str, Any]]:
        """Return the `data:` objects of a streamed chat."""
        async with self.client.stream(
            "POST", "/v1/chat/completions", json={"model": model, "stream": True}
        ) as response:
            assert response.status_code == 200, await response.aread()
            lines = [line async for line in response.aiter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]

    async def status(self, model: str) -> dict[str, Any]:
        status: dict[str, Any] = (await self.client.get(f"/models/{model}")).json()["status"]
        return status

    async def becomes(self, model: str, value: str) -> None:
        """Wait for a model's status by reading events instead of polling."""
        async with self.lifecycle.subscribe() as listener, asyncio.timeout(PATIENCE):
            while (await self.status(model))["value"] != value:
                assert await listener.get() is not None

    def waiting(self, model: str) -> int:
        """Return the number of requests that wait for the model."""
        view = self.lifecycle.view(model)
        assert view is not None
        return view.waiting

    async def worker_of(self, model: str) -> dict[str, Any]:
        """Return the fake worker's description of itself."""
        answer: dict[str, Any] = (await self.client.get("/slots", params={"model": model})).json()["worker"]
        return answer

    async def has_cancelled(self, model: str) -> None:
        """Poll the worker, which sends no events, until it has cancelled."""
        async with asyncio.timeout(PATIENCE):
            while not (await self.worker_of(model))["cancelled"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def gateway(
    *entries: Preset,
    launcher: Launcher | None = None,
    clock: Callable[[], float] = time.monotonic,
    memory_budget: MemoryBudget = UNLIMITED,
    **given: Any,
) -> AsyncIterator[Gateway]:
    settings = Settings.of(**{"port": 0, **given})
    sources = presets(*entries)

    def read_presets() -> Mapping[str, Preset]:
        if running.source_error:
            raise running.source_error
        return dict(sources)

    autoload = settings.router.models_autoload
    lifecycle = Lifecycle(
        sources,
        launcher or fake_launcher("spawn"),
        models_max=settings.router.models_max,
        autoload=autoload,
        worker_timeout=settings.router.worker_timeout,
        clock=clock,
        memory_budget=memory_budget,
    )
    try:
        application = app.build(settings, lifecycle, read_presets)
        async with listen(application, settings) as listening:
            pool = httpx.Limits(max_connections=None)
            url = listening.addresses[0]
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=pool, trust_env=False) as client:
                assert listening.port is not None
                running = Gateway(client, lifecycle, listening.port, sources)
                yield running
    finally:
        await lifecycle.close()
