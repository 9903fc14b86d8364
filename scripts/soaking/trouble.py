"""What happens to a gateway beside requests: workers that are killed, models loaded and unloaded, edited presets, pages
that look on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import psutil

from .client import reason_in
from .ledger import Ledger
from .target import CHATS, EMBEDDER, Target

Deed = Callable[[aiohttp.ClientSession, Ledger, Target], Awaitable[str]]
ANSWER_S = 30.0
"""Commands wait for exits, and those for a stop-timeout of 5 s."""
COMMAND_STATUS = {200, 400, 404, 500, 503}
"""400: not running, already running; 404: the entry is gone; 503: no place at the moment."""


async def make_trouble(session: aiohttp.ClientSession, ledger: Ledger, target: Target, end: float) -> None:
    deeds: tuple[Deed, ...] = (kill, kill, kill, load, unload, unload, edit, break_presets, reload, look_on)
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
        return "nobody to kill"
    with suppress(psutil.Error):
        ledger.random.choice(workers).kill()
    return "workers killed"


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
    """What was read before stays in force."""
    target.presets.break_it()
    async with session.get("/models") as response:
        if not (await response.json())["data"]:
            ledger.violate("a broken presets file took all models away")
    return "presets broken"


async def reload(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    async with session.get("/models", params={"reload": "1"}) as response:
        answer = await response.read()
    if response.status != 200 and not reason_in(answer):
        ledger.violate(f"reload: {response.status} {answer[:200]!r}")
    return "reloads"


async def look_on(session: aiohttp.ClientSession, ledger: Ledger, target: Target) -> str:
    """A page that listens for a moment and is closed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(ledger.random.random()), session.get("/models/sse") as response:
            await response.read()
    return "pages opened"
