"""Measures speculative decoding: tokens per second with a draft model, relative to those without, in the same minute.

Random models never agree, so draft tokens are accepted at random, as often as those of an average draft model. Both
servers have this option, and both compute and sample everything as for real drafts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from .client import post
from .generation import FLAGS, PROMPT, checked, completion
from .models import LARGE, TINY, model_file
from .scenario import BenchmarkPlan, Round, Scenario
from .servers import Server, ServerProgram, serve
from .summary import Row

TOKENS = 128
DRAFTED, ACCEPTED = 4, 2.0  # tokens of a draft, and how many of them are accepted on average
DRAFTING = ["--spec-type", "draft-simple", "--spec-draft-n-max", str(DRAFTED), "--spec-synth-len", str(ACCEPTED + 1)]


def scenario(streams: int, rounds: int) -> Scenario:
    counted = f"{streams} stream{'s' * (streams > 1)}"
    rows = (
        Row(f"drafts_{streams}", f"generation with a draft model, large model, {counted}", "tok/s", "higher", 0.95),
        Row(f"drafts_gain_{streams}", f"speed with a draft model ÷ without it, {counted}", "×", "higher"),
    )

    @asynccontextmanager
    async def opened(program: ServerProgram, plan: BenchmarkPlan) -> AsyncIterator[Round]:
        count = TOKENS // 2 if plan.quick else TOKENS
        large, tiny = (str(model_file(shape, plan.models)) for shape in (LARGE, TINY))
        flags = ["-m", large, *FLAGS]
        async with serve(program, flags) as plain, serve(program, [*flags, "-md", tiny, *DRAFTING]) as drafting:

            async def rate(server: Server) -> float:
                asked = [post(server.address, "/completion", completion(PROMPT, count)) for _ in range(streams)]
                answers = [checked(answer, count) for answer in await asyncio.gather(*asked)]
                seconds = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
                return streams * count / seconds

            async def measure() -> Mapping[str, float]:
                without, drafted = await rate(plain), await rate(drafting)
                return {f"drafts_{streams}": drafted, f"drafts_gain_{streams}": drafted / without}

            yield measure

    return Scenario(f"drafts-{streams}", rows, rounds, opened)


SCENARIOS = (scenario(1, 5), scenario(8, 5))
