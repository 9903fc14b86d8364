"""Disturbs the gateway at random: kills workers, most of them while they are busy, loads and unloads models, edits the
presets, and opens event streams.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import psutil

from .client import reason_in
from .ledger import Ledger
from .target import ALIASES, CHATS, EMBEDDER, Target

Disturbance = Callable[[aiohttp.ClientSession, Ledger, Target], Awaitable[str]]
ANSWER_S = 30.0
"""Timeout of commands: they wait for workers to exit, which may take the stop-timeout of 5 s."""
CHANCE_S = 5.0
"""How long a kill waits for the right moment."""
MIN_OPEN_REQUESTS = 6
"""With this many open requests some must wait, because not all models can run at the same time."""
COMMAND_STATUS = {200, 400, 404, 500, 503}
"""Allowed statuses. 400: not running or already running; 404: the preset was removed; 503: no place now."""


async def disturb(session: aiohttp.ClientSession, ledger: Ledger, target: Target, end: float) -> None:
    kills: tuple[Disturbance, ...] = (kill, *(kill_in_a_stream,) * 4, kill_in_a_load, kill_with_waiters)
    deeds: tuple[Disturbance, ...] = (*kills, load, unload, unload, edit, break_presets, reload, watch_events)
    while (now := time.monotonic()) < end:
        await asyncio.sleep(min(ledger.random.expovariate(1.0), end - now))
        deed = ledger.random.choice(deeds)
        try:
            async with asyncio.timeout(ANSWER_S):
                ledger.deeds[await deed(session, ledger, target)] += 1
        except TimeoutError:
            ledger.violate(f"{deed.__name__}: no answer in {ANSWER_S:.0f} s")
        except (aiohttp.ClientError, ConnectionError) as error:
            ledger.violate(f"{deed.__name__}: {type(error).__name__}: {error}")
    target.presets.write()


async def kill(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    workers = await asyncio.to_thread(target.workers)
    if not workers:
        return "no worker to kill"
    with suppress(psutil.Error):
        ledger.random.choice(workers).kill()
    return "workers killed"


async def kill_in_a_stream(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    """Kill the worker of the next stream as soon as it begins, because streams are short."""
    try:
        async with asyncio.timeout(CHANCE_S):
            name = await ledger.next_flow()
    except TimeoutError:
        return "no stream to break"
    model = ALIASES.get(name, name)
    if (worker := target.worker_of(model)) is None:
        return "no stream to break"
    with suppress(psutil.Error):
        worker.kill()
    ledger.hit += ledger.flowing(model, *(alias for alias, of in ALIASES.items() if of == model))
    return "workers killed in a stream"


async def kill_in_a_load(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    try:
        async with asyncio.timeout(CHANCE_S), session.get("/models/sse") as response:
            async for line in response.content:
                told = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
                if (told.get("data") or {}).get("status") == "loading" and (worker := target.worker_of(told["model"])):
                    worker.kill()
                    return "workers killed in a load"
    except (TimeoutError, psutil.Error):
        pass
    return "no load to break"


async def kill_with_waiters(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    """Kill a worker while some requests wait for a model or a complete answer."""
    end = time.monotonic() + CHANCE_S
    while time.monotonic() < end:
        if ledger.open >= MIN_OPEN_REQUESTS and (workers := target.workers()):
            with suppress(psutil.Error):
                ledger.random.choice(workers).kill()
            return "workers killed with a queue"
        await asyncio.sleep(0.02)
    return "no queue to disturb"


async def load(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    return await _command(session, ledger, "load")


async def unload(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    return await _command(session, ledger, "unload")


async def _command(session: aiohttp.ClientSession, ledger: Ledger, verb: str) -> str:
    model = ledger.random.choice((*CHATS, EMBEDDER))
    async with session.post(f"/models/{verb}", json={"model": model}) as response:
        answer = await response.read()
    if response.status not in COMMAND_STATUS or (response.status != 200 and not reason_in(answer)):
        ledger.violate(f"{verb} of {model}: {response.status} {answer[:200]!r}")
    return f"{verb}s {'done' if response.status == 200 else 'refused'}"


async def edit(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    target.presets.edit(ledger.random)
    return "presets edited"


async def break_presets(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    """Break the presets file: the gateway must still list all models."""
    breakage = target.presets.break_it(ledger.random)
    async with session.get("/models") as response:
        listed = {entry["id"] for entry in (await response.json())["data"]}
    if missing := {*CHATS, EMBEDDER} - listed:
        ledger.violate(f"presets {breakage.value}: models are missing: {sorted(missing)}")
    return f"presets {breakage.value}"


async def reload(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    async with session.get("/models", params={"reload": "1"}) as response:
        answer = await response.read()
    if response.status != 200 and not reason_in(answer):
        ledger.violate(f"reload: {response.status} {answer[:200]!r}")
    return "reloads"


async def watch_events(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    """Read the event stream for a moment, as a page that is opened and closed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(ledger.random.random()), session.get("/models/sse") as response:
            await response.read()
    return "pages opened"
