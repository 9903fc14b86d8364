"""Runs one attack, or the honest request that it is compared with, against a new gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from .attack import AT_ONCE, OTHER, Action, Attack, Sent
from .memory import Memory, processor_seconds
from .probe import Gaps, probing
from .rule import LEAVING_S, Measured
from .stage import Answer, Stage

SETTLE_S = 0.5
"""Measured before and after the requests, so that a short attack is seen too."""
LEAVES_AFTER_S = 0.5
LOAD_S = 0.5
"""The processor time is measured for this long."""
NOTHING = Gaps(0.0, 0.0, 0.0, 0)


class Trials:
    """Runs attacks in separate folders below `folder`; remembers the honest measurements."""

    def __init__(self, folder: Path, program: str, models: Path, *, patience: float, more_presets: str = "") -> None:
        self._folder = folder
        self._program = program
        self._models = models
        self._patience = patience
        self._more_presets = more_presets
        self._honest: dict[tuple[str, str], Gaps] = {}
        self._count = 0

    def stage(self, attack: Attack) -> Stage:
        self._count += 1
        stage = Stage(
            self._folder / f"{self._count}-{attack.name}",
            self._program,
            self._models,
            attack.key,
            attack.options,
            dict(attack.environ),
            self._patience,
            self._more_presets,
        )
        if attack.prepare:
            attack.prepare(stage)
        return stage

    def honest(self, attack: Attack) -> Gaps:
        """Return the gaps while the honest request of the attack is sent AT_ONCE times at the same time."""
        known = (attack.model, f"{attack.honest.path} {attack.honest.body()!r}")
        if known not in self._honest:
            compared = Attack("honest", "", attack.honest, model=attack.model)
            self._honest[known] = self.measure(compared, leaves=False).gaps
        return self._honest[known]

    def measure(self, attack: Attack, *, leaves: bool = True) -> Measured:
        """Run the attack. `leaves`: send it a second time, disconnect, and look if its work stops."""
        stage = self.stage(attack)
        with stage.running(attack.model, OTHER):
            memory = Memory(stage)
            memory.start()
            began = time.monotonic()
            with probing(stage.url, stage.key, attack.model, OTHER) as probe:
                probe.start_measuring()
                answers = asyncio.run(_attacked(attack.run, stage, memory))
                gaps = probe.gaps()
            seconds = time.monotonic() - began - 2 * SETTLE_S
            memory.look()
            load = 0.0
            if leaves and isinstance(attack.action, Sent) and not memory.ended():
                load = asyncio.run(_load_after_leaving(attack.action, stage))
            wrong = attack.check(stage) if attack.check else ""
            ended = () if attack.check and stage.process.poll() is not None else tuple(memory.ended())
            return Measured(
                gaps,
                memory.router_mb,
                memory.worker_mb,
                tuple(answers),
                seconds,
                ended,
                memory.was_killed,
                stage.tracebacks(),
                load,
                wrong,
            )


async def _attacked(run: Action, stage: Stage, memory: Memory) -> list[Answer]:
    async def settled() -> list[Answer]:
        await asyncio.sleep(SETTLE_S)
        answers = await run(stage)
        await asyncio.sleep(SETTLE_S)
        return answers

    return await _watched(settled, memory)


async def _watched(run: Callable[[], Awaitable[list[Answer]]], memory: Memory) -> list[Answer]:
    watch = asyncio.create_task(memory.watch())
    try:
        return await run()
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch


async def _load_after_leaving(sent: Sent, stage: Stage) -> float:
    request = (sent.method, sent.path, dict(sent.headers), sent.body())
    await stage.send_all([request], times=AT_ONCE, leave_after=LEAVES_AFTER_S)
    await asyncio.sleep(LEAVING_S)
    before = processor_seconds(stage)
    await asyncio.sleep(LOAD_S)
    return (processor_seconds(stage) - before) / LOAD_S
