"""The soak test: how it judges answers and trends, and a run of a few seconds against the real gateway."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.sources import load_presets
from soaking.__main__ import report
from soaking.client import judge
from soaking.ledger import Ending, Ledger
from soaking.requests import RequestSpec, any_request
from soaking.target import CHATS, EMBEDDER, MODELS_MAX, Breakage, PresetsFile, Target
from soaking.trend import trend
from soaking.watch import PATIENCE, Look, Verifier

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CHAT = RequestSpec("chat", "/v1/chat/completions", {"model": "m"}, b"data: [DONE]", streams=True)
WRONG = RequestSpec("wrong", "/v1/chat/completions", {"model": "m"}, b"", refused=400)
REASON = b'{"error": {"message": "why"}}'


@pytest.mark.parametrize(
    ("asked", "status", "answer", "ending"),
    [
        (CHAT, 200, b"data: {}\n\ndata: [DONE]\n\n", Ending.SERVED),
        (CHAT, 200, b'data: {}\n\ndata: {"error": {"message": "gone"}}\n\n', Ending.TOLD),
        (CHAT, 200, b"data: {}\n\n", Ending.LOST),
        (CHAT, 200, b"", Ending.LOST),
        (CHAT, 503, REASON, Ending.REFUSED),
        (CHAT, 503, b'{"error": "why, as Ollama has it"}', Ending.REFUSED),
        (CHAT, 503, b"", Ending.LOST),
        (CHAT, 400, REASON, Ending.LOST),
        (WRONG, 400, REASON, Ending.REFUSED),
        (WRONG, 200, b"{}", Ending.LOST),
    ],
)
def test_every_answer_has_an_ending(asked: RequestSpec, status: int, answer: bytes, ending: Ending) -> None:
    assert judge(asked, status, answer)[0] is ending


def test_a_request_must_end_exactly_once() -> None:
    ledger = Ledger(1)
    first, _ = ledger.begin("first"), ledger.begin("second")
    ledger.end(first, Ending.SERVED)
    ledger.end(first, Ending.SERVED)
    ledger.close()
    assert [story.split("  ")[-1][:15] for story in ledger.violations] == ["request 1 ended", "request 2 (seco"]


@given(st.integers())
def test_a_valid_request_has_the_mark_of_a_complete_answer(seed: int) -> None:
    asked = any_request(random.Random(seed))
    assert asked.body["model"]
    assert bool(asked.whole) != bool(asked.refused)


def test_growth_is_found_and_warm_up_is_ignored() -> None:
    def is_flat(values: list[float]) -> bool:
        found = trend("memory", "MB", values, share=0.1, least=1)
        assert found is not None
        return found.is_flat

    assert is_flat([100.0] * 40)
    assert is_flat([10.0] * 10 + [100.0] * 30)
    assert is_flat([100.0, 90.0] * 20)
    assert not is_flat([100.0 + n for n in range(40)])
    assert trend("memory", "MB", [1.0, 2.0], share=0, least=0) is None


# -- realistic measurements with an added failure or leak ------------------------------------------------------------

LOOKS_A_MINUTE = 110


def looks(minutes: int, *, seed: int = 0, **leaks: float) -> list[Look]:
    """Return measurements; `leaks` gives the growth of fields per minute."""
    chance = random.Random(seed)

    def look(number: int) -> Look:
        still = Look(
            router_mb=43.5 + min(1.5, number / LOOKS_A_MINUTE / 3) + chance.gauss(0, 0.3),
            router_fds=round(chance.gauss(48, 6)),
            router_threads=9,
            zygote_mb=52.3,
            zygote_fds=8,
            workers=chance.choice((1, 2, 2)),
            worker_mb=chance.gauss(57, 2),
        )
        grown = {name: getattr(still, name) + rate * number / LOOKS_A_MINUTE for name, rate in leaks.items()}
        return replace(still, **cast(dict[str, Any], grown))

    return [look(number) for number in range(minutes * LOOKS_A_MINUTE)]


def grown(found: list[Look]) -> set[str]:
    verifier = Verifier(cast(Target, None), Ledger(1), found)
    return {one.name for one in verifier.trends() if not one.is_flat}


@pytest.mark.parametrize(
    ("leak", "name"),
    [
        ({"router_mb": 1.0}, "memory of the router"),  # 2.5 KB per request at 400 requests/minute
        ({"zygote_mb": 1.2}, "memory of the zygote"),
        ({"router_fds": 3}, "descriptors of the router"),  # one per seven workers at 20 killed workers/minute
        ({"zygote_fds": 2}, "descriptors of the zygote"),
        ({"router_threads": 1}, "threads of the router"),
    ],
)
def test_a_leak_is_found_in_ten_minutes(leak: dict[str, float], name: str) -> None:
    for seed in range(5):
        assert grown(looks(10, seed=seed, **leak)) == {name}


@pytest.mark.parametrize("minutes", [5, 10, 60])
def test_noise_is_not_reported_as_a_leak(minutes: int) -> None:
    for seed in range(5):
        assert grown(looks(minutes, seed=seed)) == set()


def test_failed_requests_are_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(1)
    verifier = Verifier(cast(Target, None), ledger, looks(10, router_fds=3))
    for number, answer in enumerate((b"data: {}\n\ndata: [DONE]\n\n", b"data: {}\n\n"), 1):
        assert ledger.begin("chat of fox, streamed") == number
        ledger.end(number, *judge(CHAT, 200, answer))
    ledger.begin("embedding of compass")
    report(ledger, verifier)
    told = capsys.readouterr().out
    assert "3 violations" in told
    assert "request 2 (chat of fox, streamed) failed after 0.0 s: truncated answer: …b'data: {}" in told
    assert "request 3 (embedding of compass) never ended" in told
    assert "descriptors of the router" in told.partition("violations")[2]


def test_unknown_processes_and_zombies_are_violations() -> None:
    ledger = Ledger(1)
    verifier = Verifier(cast(Target, None), ledger)
    for _ in range(PATIENCE - 1):
        verifier.compare(["fox"], 2, 1)
    verifier.compare(["fox"], 1, 0)
    assert not ledger.violations, "processes are born and reaped between two readings"
    for _ in range(PATIENCE):
        verifier.compare(["fox"], 2, 1)
    verifier.compare(["a", "b", "c"], MODELS_MAX + 1, 0)
    stories = [story.partition(" s  ")[2] for story in ledger.violations]
    assert stories == [
        "/models lists ['fox'], but 2 workers exist",
        "a zombie is not reaped",
        f"{MODELS_MAX + 1} workers run, {MODELS_MAX} are allowed",
    ]


async def test_running_streams_are_counted_by_model() -> None:
    ledger = Ledger(1)
    numbers = [ledger.begin("chat") for _ in range(3)]
    waiting = asyncio.create_task(ledger.next_flow())
    await asyncio.sleep(0)
    for number, model in zip(numbers, ("fox", "herd", "cattle"), strict=True):
        ledger.flow(number, model)
    assert await waiting == "fox"
    assert ledger.flowing("herd", "cattle") == 2
    ledger.end(numbers[1], Ending.TOLD)
    assert ledger.flowing("herd", "cattle") == 1


def test_each_breakage_of_the_presets_file_has_its_effect(tmp_path: Path) -> None:
    path = tmp_path / "presets.ini"
    presets = PresetsFile(path, tmp_path, tmp_path)
    effects = defaultdict(set)
    for seed in range(20):
        breakage = presets.break_it(random.Random(seed))
        try:
            found = load_presets(Settings.of(models_preset=str(path)), {}, {"LLAMA_CACHE": str(tmp_path)})
        except ConfigError as error:
            effects[breakage].add(
                str(error).removeprefix(str(path)).rpartition(": ")[2].lower().removesuffix(" or directory")
            )
        else:
            assert set(found) == {*CHATS, EMBEDDER}
            effects[breakage].add(sum("no-such-key" in preset.unavailable for preset in found.values()))
    assert effects == {
        Breakage.NO_FILE: {"no such file"},
        Breakage.GLOBAL: {"unknown key 'no-such-key'"},
        Breakage.SECTION: {1},
    }


def test_some_seconds_of_it() -> None:
    command = [sys.executable, "-m", "soaking", "--minutes", "0.1", "--rate", "4", "--seed", "5"]
    environ = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 violations" in done.stdout
    assert "served" in done.stdout
