"""Measures the cost of a prefix that several requests share: eight simultaneous prompts, relative to one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from .client import HttpAnswer, post
from .generation import completion, random_prompt
from .models import LARGE, model_file
from .scenario import BenchmarkPlan, Round, Scenario, must
from .servers import ServerProgram, serve
from .summary import Row

REQUESTS, SHARED, OWN = 8, 1000, 12  # requests; tokens of the shared prefix, and of the rest of each prompt
FLAGS = ["-np", str(REQUESTS), "-kvu", "-c", "16384", "--cache-ram", "0"]


def question(shared: list[int]) -> dict[str, Any]:
    prompt = [*shared, *random_prompt(OWN)]
    return {**completion(0, 1), "prompt": prompt, "stream": False, "cache_prompt": True}


def computed(answer: HttpAnswer) -> int:
    return int(must(answer).json()["timings"]["prompt_n"])


@asynccontextmanager
async def open_shared(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
    async with serve(program, ["-m", str(model_file(LARGE, plan.models)), *FLAGS]) as server:

        async def measure() -> Mapping[str, float]:
            alone = must(await post(server.address, "/completion", question(random_prompt(SHARED))))
            shared = random_prompt(SHARED)
            requests = [post(server.address, "/completion", question(shared)) for _ in range(REQUESTS)]
            answers = await asyncio.gather(*requests)
            took = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
            return {
                "shared_tokens": sum(computed(answer) for answer in answers) / computed(alone),
                "shared_time": took / (alone.ended - alone.sent),
            }

        yield measure


ROWS = (
    Row(
        "shared_tokens",
        f"prompt tokens computed for {REQUESTS} requests with the same first {SHARED} ÷ for one",
        "×",
        "lower",
        ceiling=1.3,
    ),
    Row("shared_time", f"time for these {REQUESTS} requests ÷ for one", "×", "lower"),
)

SCENARIOS = (Scenario("sharing", ROWS, 3, open_shared),)
