"""The load clients: each sends a request, may disconnect or read slowly, and records in the ledger how it ended."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from functools import partial

import aiohttp

from .ledger import Ending, Ledger
from .requests import RequestSpec, any_request

DEADLINE_S = 60.0
"""By then every answer must be complete, refused or failed; the queue of this load takes a few seconds."""
SLOW_S = 10.0
"""A slow reader reads slowly for this time, and the rest at full speed."""
PASSING = {500, 502, 503, 529}
"""Allowed error statuses for a valid request: its model's worker was killed, fails repeatedly, or has no place.

529 is Anthropic's status for 503.
"""


async def ask(session: aiohttp.ClientSession, ledger: Ledger, wanted: RequestSpec) -> None:
    chance = ledger.random
    number = ledger.begin(f"{wanted.what} of {wanted.body.get('model')}{', streamed' if wanted.streams else ''}")
    leaves = chance.expovariate(2.0) if chance.random() < 0.15 else None
    pause = chance.choice((0.02, 0.2)) if wanted.streams and chance.random() < 0.1 else 0.0
    began = time.monotonic()
    try:
        async with asyncio.timeout(leaves if leaves is not None else DEADLINE_S):
            ending, note = await _exchange(session, wanted, pause, partial(ledger.flow, number))
    except TimeoutError:
        lost = "the answer was not complete before the deadline"
        ending, note = (Ending.GONE, "") if leaves is not None else (Ending.LOST, lost)
    except (aiohttp.ClientError, ConnectionError) as error:
        ending, note = Ending.LOST, f"{type(error).__name__}: {error}"
    ledger.end(number, ending, note, time.monotonic() - began)


async def _exchange(
    session: aiohttp.ClientSession, wanted: RequestSpec, pause: float, flows: Callable[[str], None]
) -> tuple[Ending, str]:
    async with session.post(wanted.path, json=wanted.body) as response:
        answer = bytearray()
        slow_until = time.monotonic() + (SLOW_S if pause else 0)
        async for piece in response.content.iter_chunked(256 if pause else 65536):
            if wanted.streams and response.status == 200 and not answer:
                flows(wanted.body["model"])
            answer += piece
            if time.monotonic() < slow_until:
                await asyncio.sleep(pause)
        return judge(wanted, response.status, bytes(answer))


def judge(wanted: RequestSpec, status: int, answer: bytes) -> tuple[Ending, str]:
    if status == 200 and not wanted.refused:
        if wanted.whole in answer:
            return Ending.SERVED, ""
        if wanted.streams and b'"error"' in answer:
            return Ending.TOLD, ""
        return Ending.LOST, f"truncated answer: …{answer[-200:]!r}"
    reason = reason_in(answer)
    if not reason:
        return Ending.LOST, f"{status} without a reason: {answer[:200]!r}"
    if status == wanted.refused or (status in PASSING and not wanted.refused):
        return Ending.REFUSED, f"{status} {reason[:60]}"
    if status in PASSING and wanted.what == "wrong field":  # the error of its model was found first
        return Ending.REFUSED, f"{status} {reason[:60]}"
    return Ending.LOST, f"unexpected status {status}: {reason}"


def reason_in(answer: bytes) -> str:
    """Return the message of OpenAI's, Anthropic's or Ollama's error object, or an empty text."""
    try:
        error = json.loads(answer).get("error")
    except (ValueError, AttributeError):
        return ""
    text = error.get("message") if isinstance(error, dict) else error
    return text if isinstance(text, str) else ""


async def drive(session: aiohttp.ClientSession, ledger: Ledger, per_second: float, end: float, at_most: int) -> None:
    """Send requests at random times until `end`, then wait for those that are still open."""
    chance: random.Random = ledger.random
    async with asyncio.TaskGroup() as group:
        while (now := time.monotonic()) < end:
            await asyncio.sleep(min(chance.expovariate(per_second), end - now))
            burst = chance.choice((1, 1, 1, 1, 1, 1, 1, 12))
            for _ in range(min(burst, at_most - ledger.open)):
                group.create_task(ask(session, ledger, any_request(chance)))
