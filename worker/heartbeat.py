"""Signs of life for the router: that the event loop turns, and how far the engine is.

Started by `main` under a router. A worker that hangs gives none, or the same ones; what that means the router decides.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
from llama_corral.common.base.worker_reports import HEARTBEAT_S, SignOfLife, WorkerReport

from .api.serving import WorkerContext
from .lifeline import Lifeline


async def send_heartbeats(lifeline: Lifeline, worker: WorkerContext) -> None:
    """Until it is cancelled."""
    while lifeline.has_router:
        lifeline.report(WorkerReport("alive", msgspec.to_builtins(_sign(worker))))
        await asyncio.sleep(HEARTBEAT_S)


def _sign(worker: WorkerContext) -> SignOfLife:
    cpu = round(time.process_time(), 2)
    if not worker.is_ready:
        return SignOfLife(cpu=cpu)
    busy, steps = worker.engine.progress
    return SignOfLife(busy, steps, cpu)
