"""Measures the router: latency added to small requests, requests per second, thousands of simultaneous streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from .client import post
from .generation import completion
from .hammer import hammer
from .models import TINY, model_file
from .scenario import BenchmarkPlan, Round, Scenario, must
from .servers import Server, ServerProgram, route, worker_address
from .summary import Row

MODEL = "tiny"
SMALL = {"model": MODEL, "content": "kodi mubale"}
STREAMS, STREAM_TOKENS, STREAM_SLOTS = 2000, 16, 64
SAMPLE_S = 0.1  # interval of memory readings while streams are open


def small_models(plan: BenchmarkPlan) -> dict[str, list[str]]:
    path = model_file(TINY, plan.models)
    return {
        MODEL: [
            f"model = {path}",
            f"parallel = {STREAM_SLOTS}",
            "kv-unified = true",
            "ctx-size = 8192",
            "cache-ram = 0",
        ]
    }


@asynccontextmanager
async def open_small_requests(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
    async with route(program, small_models(plan), []) as router:
        must(await post(router.address, "/tokenize", SMALL))
        direct = await worker_address(router, MODEL)
        seconds = 0.5 if plan.quick else 1.2

        async def measure() -> Mapping[str, float]:
            alone = await hammer(direct, 1, seconds, "/tokenize", SMALL)
            single = await hammer(router.address, 1, seconds, "/tokenize", SMALL)
            crowd = await hammer(router.address, 64, seconds, "/tokenize", SMALL)
            crowd_direct = await hammer(direct, 64, seconds, "/tokenize", SMALL)
            return {
                "added_p50": single.p50_us - alone.p50_us,
                "added_p99": single.p99_us - alone.p50_us,
                "requests_1": single.per_second,
                "requests_64": crowd.per_second,
                "direct_64": crowd_direct.per_second,
                "request_errors": float(single.errors + crowd.errors),
            }

        yield measure


@asynccontextmanager
async def open_streams(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
    async with route(program, small_models(plan), []) as router:
        must(await post(router.address, "/tokenize", SMALL))
        n_predict = 4 if plan.quick else STREAM_TOKENS
        bodies = [{"model": MODEL, **completion(8, n_predict)} for _ in range(STREAMS)]

        async def measure() -> Mapping[str, float]:
            peak = Peak(router)
            watcher = asyncio.create_task(peak.watch())
            answers = await asyncio.gather(*(post(router.address, "/completion", body) for body in bodies))
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            wall = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
            whole = sum(answer.good and len(answer.events) >= n_predict // 2 for answer in answers)
            return {"streams_wall": wall, "streams_errors": float(STREAMS - whole), "streams_rss": peak.megabytes}

        yield measure


class Peak:
    """Records the largest memory of the front process while streams are open."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.megabytes = 0.0

    async def watch(self) -> None:
        while True:
            self.megabytes = max(self.megabytes, self.server.rss_mb())
            await asyncio.sleep(SAMPLE_S)


SMALL_ROWS = (
    Row("added_p50", "router: latency added to a small request, p50", "µs", "lower", 0.7),
    Row("added_p99", "router: p99 of a small request, above the worker's p50", "µs", "lower"),
    Row("requests_1", "router: small requests, 1 connection", "/s", "higher", 2.0),
    Row("requests_64", "router: small requests, 64 connections", "/s", "higher", 2.0),
    Row("direct_64", "small requests sent directly to the worker, 64 connections", "/s", "higher"),
    Row("request_errors", "errors among these requests", "", "lower", ceiling=0),
)
STREAM_ROWS = (
    Row("streams_wall", f"router: {STREAMS:,} streams opened at once, until the last has ended", "s", "lower", 0.8),
    Row("streams_errors", "streams that failed", "", "lower", ceiling=0),
    Row("streams_rss", "router's memory during these streams", "MB", "lower"),
)
SCENARIOS = (
    Scenario("router", SMALL_ROWS, 5, open_small_requests),
    Scenario("streams", STREAM_ROWS, 3, open_streams, warm=False),
)
