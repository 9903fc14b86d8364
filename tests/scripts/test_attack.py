"""The attacks: how the rule judges measurements, and which attacks there are."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from attacks.__main__ import choose, line
from attacks.attack import Attack, completion
from attacks.catalogue import ATTACKS
from attacks.probe import Gaps, Waits
from attacks.rule import Limits, Measured, broken
from attacks.stage import MOST_TEXT, Answer

ATTACK = Attack("a", "an attack", completion())
HONEST = Gaps(0.1, 0.1, 0.01, 0)
REFUSED = Answer(400, '{"error": {"message": "too large: 5, at most 4"}}')
FINE = Measured(HONEST, 10.0, 10.0, (REFUSED,), 0.5)


def test_an_attack_that_costs_no_more_than_an_honest_request_keeps_the_rule() -> None:
    assert broken(ATTACK, FINE, HONEST) == []
    assert broken(ATTACK, replace(FINE, gaps=Gaps(0.34, 0.34, 0.25, 0)), HONEST) == []


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        (replace(FINE, gaps=replace(HONEST, same=0.36)), "same waited 360 ms, allowed are 350 ms"),
        (replace(FINE, gaps=replace(HONEST, other=9.0)), "other waited 9000 ms"),
        (replace(FINE, gaps=replace(HONEST, health=0.3)), "health waited 300 ms"),
        (replace(FINE, router_mb=600.0), "the router took 600 MB more"),
        (replace(FINE, worker_mb=600.0), "the worker took 600 MB more"),
        (replace(FINE, answers=(Answer(200),)), "status 200, expected 400"),
        (replace(FINE, answers=(Answer(-1),)), "no answer in time"),
        (replace(FINE, answers=(Answer(0),)), "closed without an answer"),
        (replace(FINE, answers=(Answer(400, "no"),)), "without a message"),
        (replace(FINE, answers=(Answer(400, "n" * MOST_TEXT),)), "an error of more than 128 KB"),
        (replace(FINE, answers=(Answer(-2, "80 processes"),)), "too many processes"),
        (replace(FINE, ended=(5,)), "1 processes ended"),
        (replace(FINE, was_killed=True), "killed the gateway"),
        (replace(FINE, tracebacks=1), "1 tracebacks"),
        (replace(FINE, load_after_leaving=0.9), "still works"),
        (replace(FINE, gaps=replace(HONEST, failures=2)), "2 requests of the neighbours failed"),
        (replace(FINE, wrong="a line in the log"), "a line in the log"),
    ],
)
def test_each_way_to_break_the_rule_is_found(seen: Measured, fault: str) -> None:
    (found,) = broken(ATTACK, seen, HONEST)
    assert fault in found


def test_a_slow_machine_may_have_wider_limits() -> None:
    seen = replace(FINE, gaps=replace(HONEST, same=2.0))
    assert broken(ATTACK, seen, HONEST, Limits(more_ms=3000)) == []


def test_a_wait_that_still_lasts_is_measured() -> None:
    waits = Waits()
    waits.begin()
    asyncio.run(asyncio.sleep(0.01))
    assert waits.read() >= 0.01
    waits.arrived()
    waits.rest()
    assert waits.read() == waits.largest
    waits.reset()
    assert waits.read() == 0


def test_every_attack_has_another_name_and_a_description() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names) >= 90
    assert all(attack.what and attack.statuses for attack in ATTACKS)


def test_attacks_are_chosen_by_the_beginning_of_their_names() -> None:
    assert {attack.name for attack in choose(["digits"], quick=False)} >= {"digits", "digits-seed"}
    assert all(attack.quick for attack in choose(None, quick=True))
    with pytest.raises(SystemExit, match="'nothing'"):
        choose(["nothing"], quick=False)


def test_a_line_counts_the_statuses() -> None:
    assert line("a", replace(FINE, answers=(REFUSED, REFUSED, Answer(200)))).endswith("1 × 200, 2 × 400")
