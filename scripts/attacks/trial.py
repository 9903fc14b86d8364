"""Runs one attack, or the honest request that it is compared with, against a new gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .attack import AT_ONCE, OTHER, Action, Attack, Sent
from .memory import Memory, processor_seconds
from .probe import Gaps, Probe, probing
from .rule import LEAVING_S, Measured
from .stage import Answer, Stage

SETTLE_S = 0.5
"""Measured before and after the requests, so that a short attack is seen too."""
LEAVES_AFTER_S = 0.5
LOAD_S = 0.5
"""The processor time is measured for this long."""


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

    @contextmanager
    def session(self, attack: Attack) -> Iterator[Session]:
        """Run a gateway as the attack needs it, with the neighbours' streams."""
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
        with stage.running(attack.model, OTHER), probing(stage.url, stage.key, attack.model, OTHER) as probe:
            yield Session(stage, probe)

    def honest(self, attack: Attack) -> Gaps:
        """Return the gaps while the honest request of the attack is sent AT_ONCE times at the same time."""
        known = honest_name(attack)
        if known not in self._honest:
            compared = Attack("honest", "", attack.honest, model=attack.model)
            self._honest[known] = self.measure(compared, leaves=False).gaps
        return self._honest[known]

    def measure(self, attack: Attack, *, leaves: bool = True) -> Measured:
        with self.session(attack) as session:
            return session.measure(attack, leaves=leaves)


def honest_name(attack: Attack) -> tuple[str, str]:
    """Return what tells one honest request from another."""
    honest = attack.honest
    return attack.model, f"{honest.path} {honest.body()!r}" if isinstance(honest, Sent) else attack.name


@dataclass
class Session:
    """A running gateway with the neighbours' streams."""

    stage: Stage
    probe: Probe

    def measure(self, attack: Attack, *, leaves: bool = True, settle_s: float = SETTLE_S) -> Measured:
        """Run the attack. `leaves`: look if its work stops when its clients disconnect. Send it again for that, unless
        they got no answer in time.
        """
        stage = self.stage
        memory = Memory(stage)
        memory.start()
        tracebacks = stage.tracebacks()
        self.probe.start_measuring()
        began = time.monotonic()
        answers = asyncio.run(_attacked(attack.run, stage, memory, settle_s))
        seconds = time.monotonic() - began - 2 * settle_s
        gaps = self.probe.gaps()
        memory.look()
        load = 0.0
        if leaves and isinstance(attack.action, Sent) and not memory.ended():
            self.probe.pause()
            have_left = any(answer.status < 0 for answer in answers)
            load = asyncio.run(_load_after_leaving(attack.action if not have_left else None, stage))
        ended = tuple(memory.ended())
        wrong = attack.check(stage) if attack.check else ""
        return Measured(
            gaps,
            memory.router_mb,
            memory.worker_mb,
            tuple(answers),
            seconds,
            ended,
            memory.was_killed,
            stage.tracebacks() - tracebacks,
            load,
            wrong,
        )


async def _attacked(run: Action, stage: Stage, memory: Memory, settle_s: float) -> list[Answer]:
    async def settled() -> list[Answer]:
        await asyncio.sleep(settle_s)
        answers = await run(stage)
        await asyncio.sleep(settle_s)
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


async def _load_after_leaving(sent: Sent | None, stage: Stage) -> float:
    """Return the share of a processor that is used after clients have left. None: they have just left."""
    if sent is not None:
        request = (sent.method, sent.path, dict(sent.headers), sent.body())
        await stage.send_all([request], times=AT_ONCE, leave_after=LEAVES_AFTER_S)
    await asyncio.sleep(LEAVING_S)
    before = processor_seconds(stage)
    await asyncio.sleep(LOAD_S)
    return (processor_seconds(stage) - before) / LOAD_S
