"""Test that the router's README describes every file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from llama_corral.router.placement.states import diagram
from readme_blocks import TRIPS, between_markers, blocks, file_of

ROUTER = Path(__file__).resolve().parents[2] / "router"
README = (ROUTER / "README.md").read_text(encoding="utf-8")


def test_diagram_is_drawn_from_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in README, "print placement.states.diagram() and put it there"


@pytest.mark.parametrize("name", blocks())
def test_a_generated_part_is_up_to_date(name: str) -> None:
    assert between_markers(name, blocks()[name]) in README, "run tests/support/readme_blocks.py"


@pytest.mark.parametrize("title", TRIPS)
def test_a_trip_is_read_in_at_most_four_files(title: str) -> None:
    assert len({file_of(function) for function in TRIPS[title]}) <= 4
    assert all(function.__doc__ for function in TRIPS[title])


def test_the_example_without_http_runs() -> None:
    (program,) = re.findall(r"```python\n(import asyncio\n.*?)```", README, re.DOTALL)
    assert len(program.splitlines()) <= 35
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    lines = ran.stdout.splitlines()
    assert lines[-1] == "running: ['demo-chat']"
    assert [line.split()[0] for line in lines if " answers on " in line] == ["demo-story", "demo-chat"]
    assert "demo-story status_change unloaded" in lines


def test_every_file_is_described() -> None:
    files = {
        path.relative_to(ROUTER).as_posix()
        for path in ROUTER.rglob("*")
        if path.suffix in (".py", ".html") and path.name != "__init__.py"
    }
    named = set(re.findall(r"`([\w./]+\.(?:py|html))`", README))
    assert files <= named
    assert {name for name in named if not (ROUTER / name).exists()} == set()
