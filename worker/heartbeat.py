"""Signs of life for the router: that the event loop turns, and how far the engine is.

Started by `main` under a router. A worker that hangs gives none, or the same ones; what that means the router decides.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
from llama_corral.common.base.worker_reports import HEARTBEAT_S, Report, SignOfLife

from .api.serving import Serving
from .lifeline import Lifeline


async def beat(lifeline: Lifeline, serving: Serving) -> None:
    """Until it is cancelled."""
    while lifeline.has_router:
        lifeline.report(Report("alive", msgspec.to_builtins(_sign(serving))))
        await asyncio.sleep(HEARTBEAT_S)


def _sign(serving: Serving) -> SignOfLife:
    cpu = round(time.process_time(), 2)
    if not serving.is_ready:
        return SignOfLife(cpu=cpu)
    busy, steps = serving.engine.progress
    return SignOfLife(busy, steps, cpu)
