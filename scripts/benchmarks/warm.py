"""Measures the cost of a swap for a conversation: the swap to another model, and the next turn after the swap back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from .client import HttpAnswer, post
from .generation import completion, random_prompt
from .lifecycle import ONE_MODEL, first_token
from .models import LARGE, OTHER, model_file
from .scenario import BenchmarkPlan, Round, Scenario, must
from .servers import ServerProgram, route
from .summary import Row

TURN, QUESTION, ANSWER = 2000, 12, 8  # tokens of the conversation so far, of the next question, of each answer


async def ask(router: Any, prompt: list[int]) -> HttpAnswer:
    request = {**completion(0, ANSWER), "model": LARGE.name, "prompt": prompt, "cache_prompt": True}
    return must(await post(router.address, "/completion", request))


@asynccontextmanager
async def open_warm(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
    models = {
        shape.name: [f"model = {model_file(shape, plan.models)}", "ctx-size = 4096", "parallel = 1"]
        for shape in (LARGE, OTHER)
    }
    async with route(program, models, ONE_MODEL) as router:

        async def measure() -> Mapping[str, float]:
            conversation = random_prompt(TURN)
            await ask(router, conversation)
            leaving = await first_token(router, OTHER.name)
            cold = await first_token(router, LARGE.name)
            await first_token(router, OTHER.name)
            answer = await ask(router, [*conversation, *random_prompt(QUESTION)])
            return {"warm_turn": answer.first_event * 1000, "warm_leave": leaving, "warm_load": cold}

        yield measure


ROWS = (
    Row(
        "warm_turn",
        f"next turn of a {TURN}-token conversation after a swap, until its first token",
        "ms",
        "lower",
        0.25,
    ),
    Row("warm_leave", "swap away from that conversation, until the other model's first token", "ms", "lower", 1.0),
    Row("warm_load", "the model's load alone, until the first token of a short prompt", "ms", "lower"),
)
SCENARIOS = (Scenario("warm", ROWS, 5, open_warm, warm=False),)
