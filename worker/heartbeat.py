"""Sends heartbeats to the router: they show that the event loop runs and how far the engine has progressed.

`serve` starts it; without a router it sends nothing. A hanging worker sends no heartbeats or always the same; the
router decides what to do about it.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
from llama_corral.common.base.worker_reports import HEARTBEAT_S, SignOfLife, WorkerReport

from .api.serving import WorkerContext
from .lifeline import Lifeline


async def send_heartbeats(lifeline: Lifeline, worker: WorkerContext) -> None:
    """Send a heartbeat every `HEARTBEAT_S` seconds until the task is cancelled or the router is gone."""
    while lifeline.has_router:
        lifeline.report(WorkerReport("alive", msgspec.to_builtins(_sign(worker))))
        await asyncio.sleep(HEARTBEAT_S)


def _sign(worker: WorkerContext) -> SignOfLife:
    cpu = round(time.process_time(), 2)
    if not worker.is_ready:
        return SignOfLife(cpu=cpu)
    busy, steps = worker.engine.progress
    return SignOfLife(busy, steps, cpu)
