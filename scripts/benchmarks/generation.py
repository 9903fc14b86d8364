"""Measures a single-model server: tokens per second, gaps between tokens and the time to the first token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

from .client import HttpAnswer, post
from .models import FIRST_WORD, LARGE, N_VOCAB, TINY, LlamaShape, model_file
from .scenario import BenchmarkPlan, Round, Scenario, must
from .servers import ServerError, ServerProgram, serve
from .summary import Row, gaps, percentile

SLOTS = 32
PROMPT = 128  # tokens
RUNNING, ARRIVING, LONG_PROMPT = 4, 3, 1024  # running streams, prompts that arrive meanwhile, tokens of each of these
SETTLED = 20  # tokens that each running stream has generated before the long prompts arrive

# One KV cache for all slots and no cache of old prompts, so that each request is new for both servers.
FLAGS = ["-np", str(SLOTS), "-kvu", "-c", "16384", "--cache-ram", "0"]


def random_prompt(count: int) -> list[int]:
    return random.choices(range(FIRST_WORD, N_VOCAB), k=count)


def completion(prompt_tokens: int, n_predict: int) -> dict[str, Any]:
    """Return a streamed completion request for exactly `n_predict` tokens, with llama-server's default sampling."""
    return {
        "prompt": random_prompt(prompt_tokens),
        "n_predict": n_predict,
        "stream": True,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
    }


def checked(answer: HttpAnswer, n_predict: int) -> HttpAnswer:
    """Return the answer. Raises ServerError unless its last event reports `n_predict` tokens."""
    must(answer)
    if f'"tokens_predicted":{n_predict},'.encode() not in answer.body.replace(b" ", b""):
        raise ServerError(f"a stream did not have {n_predict} tokens: …{bytes(answer.body[-300:])!r}")
    return answer


def throughput(name: str, shape: LlamaShape, streams: int, n_predict: int, limit: float, rounds: int) -> Scenario:
    key = f"{name}_{streams}"
    label = f"generation, {shape.name} model, {streams} stream{'s' * (streams > 1)}"

    @asynccontextmanager
    async def opened(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
        count = n_predict // 4 if plan.quick else n_predict
        async with serve(program, ["-m", str(model_file(shape, plan.models)), *FLAGS]) as server:

            async def measure() -> Mapping[str, float]:
                requests = [post(server.address, "/completion", completion(PROMPT, count)) for _ in range(streams)]
                answers = [checked(answer, count) for answer in await asyncio.gather(*requests)]
                wall = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
                return {key: streams * count / wall}

            yield measure

    return Scenario(f"{name}-{streams}", (Row(key, label, "tok/s", "higher", limit),), rounds, opened)


@asynccontextmanager
async def open_arrivals(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
    async with serve(program, ["-m", str(model_file(LARGE, plan.models)), *FLAGS]) as server:

        async def measure() -> Mapping[str, float]:
            n_predict = 128 if plan.quick else 256
            running = [post(server.address, "/completion", completion(PROMPT, n_predict)) for _ in range(RUNNING)]
            streams = asyncio.gather(*running)
            probe = await post(server.address, "/completion", completion(PROMPT, SETTLED))  # delays the arrival
            checked(probe, SETTLED)
            prompts = [post(server.address, "/completion", completion(LONG_PROMPT, 1)) for _ in range(ARRIVING)]
            arrived = [checked(answer, 1) for answer in await asyncio.gather(*prompts)]
            flowing = [checked(answer, n_predict) for answer in await streams]
            first = min(answer.sent for answer in arrived)
            last = max(answer.events[0] for answer in arrived)
            times = sorted(gap for answer in flowing for gap in gaps(answer.events[:-1], first, last))
            return {"arrivals_itl": percentile(times, 99) * 1000, "arrivals_ttft": (last - first) * 1000}

        yield measure


@asynccontextmanager
async def open_first_token(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
    async with serve(program, ["-m", str(model_file(LARGE, plan.models)), *FLAGS]) as server:

        async def measure() -> Mapping[str, float]:
            took = [
                must(await post(server.address, "/completion", completion(PROMPT, 2))).first_event for _ in range(5)
            ]
            return {"first_token": median(took) * 1000}

        yield measure


ARRIVAL_ROWS = (
    Row("arrivals_itl", f"token gap p99 of {RUNNING} streams, {ARRIVING} long prompts arriving", "ms", "lower", 1.0),
    Row("arrivals_ttft", "time until the first token of the last long prompt", "ms", "lower"),
)
FIRST_TOKEN_ROWS = (Row("first_token", f"first token, idle, {PROMPT}-token prompt", "ms", "lower", 1.25),)

SCENARIOS = (
    throughput("generation", LARGE, 1, 128, 0.95, 7),
    throughput("generation", LARGE, 8, 128, 0.95, 5),
    throughput("generation", LARGE, 32, 128, 0.95, 3),
    throughput("overhead", TINY, 1, 256, 0.8, 7),
    throughput("overhead", TINY, 8, 256, 0.8, 7),
    throughput("overhead", TINY, 32, 256, 0.8, 5),
    Scenario("first-token", FIRST_TOKEN_ROWS, 5, open_first_token),
    Scenario("arrivals", ARRIVAL_ROWS, 5, open_arrivals),
)
