"""The parts of router/README.md that are generated from the code. Run this file to write them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.models.registry import Catalog
from llama_corral.router.placement import placement
from llama_corral.router.reducer import commands, reloads, requests, sequence, workers
from llama_corral.router.reducer.reducer import event_table

README = Path(__file__).resolve().parents[2] / "router" / "README.md"

TRIPS: dict[str, tuple[Callable[..., Any], ...]] = {
    "A request": (
        Lifecycle.lease,
        requests.on_arrived,
        requests.on_estimated,
        requests._wait,
        sequence._place,
        workers.start,
        workers.on_started,
        workers.on_reported,
        sequence._grant_waiting,
        requests.grant,
        requests.on_released,
    ),
    "A load by `POST /models/load`": (
        Lifecycle.load,
        commands.on_load,
        sequence._place,
        sequence._carry_out_load,
        workers.start,
        workers.on_started,
    ),
    "An eviction": (
        placement.decide,
        sequence._carry_out,
        workers.stop,
        workers.on_stop_timeout,
        workers.on_exited,
        sequence.follow_up,
    ),
    "A reload": (
        Lifecycle.reload,
        reloads.on_requested,
        reloads.advance,
        Catalog.mark_retiring,
        workers.stop,
        workers.on_exited,
        Catalog.apply_presets,
    ),
}
"""The functions to read from top to bottom, in order."""


def file_of(function: Callable[..., Any]) -> str:
    return "/".join(function.__module__.split(".")[2:]) + ".py"


def trips() -> str:
    return "\n\n".join(f"**{title}**\n\n" + "\n".join(_steps(functions)) for title, functions in TRIPS.items())


def _steps(functions: tuple[Callable[..., Any], ...]) -> Iterator[str]:
    for number, function in enumerate(functions, 1):
        summary = re.sub(r"\s+", " ", (inspect.getdoc(function) or "").split("\n\n")[0])
        yield f"{number}. `{file_of(function)}`, `{function.__qualname__}`: {summary}"


def numbered_list(module: Any) -> str:
    """Return the numbered list in a module's docstring."""
    found = re.search(r"^1\. .*?(?=\n\n)", module.__doc__, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0]


def blocks() -> dict[str, str]:
    return {
        "sequence": numbered_list(sequence),
        "events": event_table(),
        "placement": numbered_list(placement),
        "trips": trips(),
    }


def between_markers(name: str, block: str) -> str:
    return f"<!-- generated: {name} -->\n{block}\n<!-- end of {name} -->"


def write() -> None:
    text = README.read_text(encoding="utf-8")
    for name, block in blocks().items():
        pattern = rf"<!-- generated: {name} -->.*?<!-- end of {name} -->"
        text, count = re.subn(pattern, lambda _, n=name, b=block: between_markers(n, b), text, flags=re.DOTALL)
        assert count == 1, name
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
