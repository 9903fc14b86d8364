"""Measures swaps between two models, the first load, the start of a server and the memory of an idle router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import median

from .client import post
from .generation import completion
from .models import LARGE, OTHER, LlamaShape, model_file
from .scenario import BenchmarkPlan, Round, Scenario, must
from .servers import Server, ServerProgram, route, serve
from .summary import Row

SWAPS = 4  # per round, so that each model is loaded twice
SETTLE_S = 1.5  # by then a router has started its helper processes
ONE_MODEL = ["--models-max", "1"]


def two_models(plan: BenchmarkPlan) -> dict[str, list[str]]:
    def lines(shape: LlamaShape) -> list[str]:
        return [f"model = {model_file(shape, plan.models)}", "ctx-size = 4096", "cache-ram = 0"]

    return {shape.name: lines(shape) for shape in (LARGE, OTHER)}


async def first_token(router: Server, model: str) -> float:
    """Return the milliseconds until the first token of a short prompt, including the model's load if necessary."""
    answer = await post(router.address, "/completion", {"model": model, **completion(8, 2)})
    return must(answer).first_event * 1000


@asynccontextmanager
async def open_swap(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
    async with route(program, two_models(plan), ONE_MODEL) as router:
        await first_token(router, OTHER.name)

        async def measure() -> Mapping[str, float]:
            return {"swap": median([await first_token(router, (LARGE, OTHER)[i % 2].name) for i in range(SWAPS)])}

        yield measure


@asynccontextmanager
async def open_start(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
    models = two_models(plan)

    async def measure() -> Mapping[str, float]:
        async with route(program, models, ONE_MODEL) as router:
            at_once = await first_token(router, LARGE.name)
            from_start = router.ready_s * 1000 + at_once
        async with route(program, models, ONE_MODEL) as waiting:
            await asyncio.sleep(SETTLE_S)
            alone, family = waiting.rss_mb(), waiting.family_mb()
            settled = await first_token(waiting, LARGE.name)
        async with serve(program, ["-m", str(model_file(LARGE, plan.models)), "-c", "4096"]) as single:
            pass
        return {
            "router_ready": median([router.ready_s, waiting.ready_s]) * 1000,
            "first_request": at_once,
            "first_request_from_start": from_start,
            "first_load": settled,
            "single_ready": single.ready_s * 1000,
            "idle_rss": alone,
            "idle_family": family,
        }

    yield measure


SWAP_ROWS = (Row("swap", "swap to another model, until its first token", "ms", "lower", 1.0),)
START_ROWS = (
    Row("router_ready", "router start until /health", "ms", "lower", ceiling=300),
    Row("first_request", "first request after the start: from listening until its first token", "ms", "lower", 1.5),
    Row("first_request_from_start", "the same, from the start of the process", "ms", "lower"),
    Row("first_load", "first load by an idle router, until its first token", "ms", "lower"),
    Row("single_ready", "single-model server start until /health", "ms", "lower"),
    Row("idle_rss", "idle router: memory of its process", "MB", "lower", 3.0),
    Row("idle_family", "idle router: with its helper processes", "MB", "lower"),
)
SCENARIOS = (
    Scenario("swap", SWAP_ROWS, 5, open_swap, warm=False),
    Scenario("start", START_ROWS, 5, open_start),
)
