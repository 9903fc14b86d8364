"""Attacks on the real gateway that take a few seconds, judged with wide limits, because the machine may be busy.

`scripts/attack` runs all attacks with the real limits.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attacks.attack import Attack
from attacks.catalogue import ATTACKS, MORE_PRESETS
from attacks.probe import Gaps
from attacks.rule import Limits, broken
from attacks.stage import Answer, Stage
from attacks.trial import Session, Trials, honest_name

PROGRAM = Path(sys.executable).with_name("llama-corral")
LIMITS = Limits(more_ms=2500.0)
SETTLE_S = 0.1
STOPPED_S = 1.5
NOT_YET: dict[str, str] = {}
"""Quick attacks that the program does not withstand, with the reason. Remove an entry with the change that mends it."""
SURVIVED = sorted(
    (attack for attack in ATTACKS if attack.quick and attack.name not in NOT_YET), key=lambda one: (one.model, one.key)
)
"""Those on the same model follow each other, because they share a gateway."""


class Gateways:
    """Runs one gateway at a time; the attacks on the same model share it."""

    def __init__(self, trials: Trials, stack: ExitStack) -> None:
        self._trials = trials
        self._stack = stack
        self._kind: tuple[object, ...] = ()
        self._session: Session | None = None
        self._honest: dict[tuple[str, str], Gaps] = {}

    def session(self, attack: Attack) -> Session:
        kind = (attack.model, attack.key, attack.prepare, attack.options, attack.environ)
        if self._session is None or kind != self._kind:
            self._stack.close()
            self._session = self._stack.enter_context(self._trials.session(attack))
            self._kind = kind
        return self._session

    def honest(self, attack: Attack) -> Gaps:
        name = honest_name(attack)
        if name not in self._honest:
            honest = Attack("honest", "", attack.honest, model=attack.model, key=attack.key)
            self._honest[name] = self.session(honest).measure(honest, leaves=False, settle_s=SETTLE_S).gaps
        return self._honest[name]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("attacks")
    presets = MORE_PRESETS.format(models=models)
    with ExitStack() as stack:
        yield Gateways(Trials(folder, str(PROGRAM), models, patience=20.0, more_presets=presets), stack)


def test_each_exception_is_an_attack() -> None:
    assert set(NOT_YET) <= {attack.name for attack in ATTACKS}


@pytest.mark.parametrize("attack", SURVIVED, ids=lambda attack: attack.name)
def test_an_attack_keeps_the_rule(attack: Attack, gateways: Gateways) -> None:
    honest = gateways.honest(attack)
    seen = gateways.session(attack).measure(attack, leaves=False, settle_s=SETTLE_S)
    assert broken(attack, seen, honest, LIMITS) == []


# -- the measurement itself, with a gateway that does what no attack may cause --------------------------------------


async def router_stops(stage: Stage) -> list[Answer]:
    stage.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOPPED_S)
    stage.process.send_signal(signal.SIGCONT)
    return [Answer(400, '{"error": "why"}')]


async def a_worker_dies(stage: Stage) -> list[Answer]:
    zygote = stage.zygote()
    assert zygote is not None
    zygote.children()[0].kill()
    return await stage.send_all([("GET", "/nothing", {}, b"")])


def test_a_router_that_does_nothing_for_a_time_is_noticed(gateways: Gateways) -> None:
    attack = Attack("stops", "", router_stops)
    honest = gateways.honest(attack)
    gaps = gateways.session(attack).measure(attack, settle_s=SETTLE_S).gaps
    for name in ("same", "other", "health"):
        assert getattr(gaps, name) >= STOPPED_S * 0.9 > getattr(honest, name), name


def test_a_worker_that_ends_is_noticed(gateways: Gateways) -> None:
    attack = Attack("dies", "", a_worker_dies, frozenset({404}), environ=(("NEW", "gateway"),))
    faults = broken(attack, gateways.session(attack).measure(attack, settle_s=SETTLE_S), gateways.honest(attack))
    assert "1 processes ended" in faults
