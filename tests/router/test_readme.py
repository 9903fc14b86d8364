"""Test that the router's README describes every file."""

from __future__ import annotations

import re
from pathlib import Path

from llama_corral.router.placement.states import diagram

ROUTER = Path(__file__).resolve().parents[2] / "router"
README = (ROUTER / "README.md").read_text(encoding="utf-8")


def test_diagram_is_drawn_from_the_table() -> None:
    assert f"```mermaid\n{diagram()}\n```" in README, "print placement.states.diagram() and put it there"


def test_every_file_is_described() -> None:
    files = {
        path.relative_to(ROUTER).as_posix()
        for path in ROUTER.rglob("*")
        if path.suffix in (".py", ".html") and path.name != "__init__.py"
    }
    named = set(re.findall(r"`([\w./]+\.(?:py|html))`", README))
    assert files <= named
    assert {name for name in named if not (ROUTER / name).exists()} == set()
