"""Measures the cost of a JSON schema: tokens per second, relative to those of free text in the same minute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from .client import post
from .generation import FLAGS, PROMPT, checked, completion
from .models import LARGE, model_file
from .scenario import BenchmarkPlan, Round, Scenario
from .servers import ServerProgram, serve
from .summary import Row

TOKENS = 128
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 10, "maxLength": 60},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 24}, "minItems": 100},
    },
    "required": ["title", "tags"],
}
"""Its answers are longer than the measured tokens. Half of the tokens are outside of strings, where a random model's
first choice never fits."""

MOST = 1.11
"""Allowed time per token, relative to free text: 1.11 is a rate of 0.9."""


def constrained(n_predict: int) -> dict[str, Any]:
    return {**completion(PROMPT, n_predict), "ignore_eos": False, "json_schema": SCHEMA}


def scenario(streams: int, rounds: int) -> Scenario:
    counted = f"{streams} stream{'s' * (streams > 1)}"
    rows = (
        Row(f"json_{streams}", f"generation with a JSON schema, large model, {counted}", "tok/s", "higher", 0.95),
        Row(
            f"json_cost_{streams}",
            f"time per token with the schema ÷ without it, {counted}",
            "×",
            "lower",
            ceiling=MOST,
        ),
    )

    @asynccontextmanager
    async def opened(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
        count = TOKENS // 2 if plan.quick else TOKENS
        async with serve(program, ["-m", str(model_file(LARGE, plan.models)), *FLAGS]) as server:

            async def seconds(body: dict[str, Any]) -> float:
                asked = [post(server.address, "/completion", body) for _ in range(streams)]
                answers = [checked(answer, count) for answer in await asyncio.gather(*asked)]
                return max(answer.ended for answer in answers) - min(answer.sent for answer in answers)

            async def measure() -> Mapping[str, float]:
                free, held = await seconds(completion(PROMPT, count)), await seconds(constrained(count))
                return {f"json_{streams}": streams * count / held, f"json_cost_{streams}": held / free}

            yield measure

    return Scenario(f"json-{streams}", rows, rounds, opened)


SCENARIOS = (scenario(1, 5), scenario(8, 5))
