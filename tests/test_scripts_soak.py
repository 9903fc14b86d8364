"""The soak: its judgement of answers and trends, and a few seconds of it against the real gateway."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
pytest.importorskip("gguf")

from soaking.client import judge
from soaking.ledger import Ending, Ledger
from soaking.requests import Ask, any_request
from soaking.trend import trend

SCRIPTS = Path(__file__).parents[1] / "scripts"
CHAT = Ask("chat", "/v1/chat/completions", {"model": "m"}, b"data: [DONE]", streams=True)
WRONG = Ask("wrong", "/v1/chat/completions", {"model": "m"}, b"", refused=400)
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
def test_every_answer_has_an_ending(asked: Ask, status: int, answer: bytes, ending: Ending) -> None:
    assert judge(asked, status, answer)[0] is ending


def test_a_request_ends_once_and_does_end() -> None:
    ledger = Ledger(1)
    first, _ = ledger.begin("first"), ledger.begin("second")
    ledger.end(first, Ending.SERVED)
    ledger.end(first, Ending.SERVED)
    ledger.close()
    assert [story.split("  ")[-1][:15] for story in ledger.violations] == ["request 1 ended", "request 2 (seco"]


@given(st.integers())
def test_a_request_names_what_a_whole_answer_holds(seed: int) -> None:
    asked = any_request(random.Random(seed))
    assert asked.body["model"]
    assert bool(asked.whole) != bool(asked.refused)


def test_what_grows_is_seen_and_what_warms_up_is_not() -> None:
    def is_flat(values: list[float]) -> bool:
        found = trend("memory", "MB", values, share=0.1, least=1)
        assert found is not None
        return found.is_flat

    assert is_flat([100.0] * 40)
    assert is_flat([10.0] * 10 + [100.0] * 30)
    assert is_flat([100.0, 90.0] * 20)
    assert not is_flat([100.0 + n for n in range(40)])
    assert trend("memory", "MB", [1.0, 2.0], share=0, least=0) is None


def test_some_seconds_of_it() -> None:
    command = [sys.executable, "-m", "soaking", "--minutes", "0.1", "--rate", "4", "--seed", "5"]
    environ = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 violations" in done.stdout
    assert "served" in done.stdout
