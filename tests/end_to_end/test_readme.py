"""The README matches the program: its endpoints, its links, its presets file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from llama_corral.common.web.application import PAGE_PATHS
from llama_corral.presets.ini import read_presets
from llama_corral.presets.options.settings import Settings
from llama_corral.router import app
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from router_tools import fake_launcher

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


async def test_every_endpoint_is_named() -> None:
    named = set(re.findall(r"`(GET|POST|DELETE) (/[^`?]*)`", README))

    async def routes() -> set[tuple[str, str]]:
        lifecycle = Lifecycle({}, fake_launcher("spawn"), models_max=1, autoload=True)
        application = app.build(Settings(), lifecycle, dict)
        return {
            (route.method, route.resource.canonical)
            for route in application.router.routes()
            if route.method != "HEAD" and route.resource and route.resource.canonical not in PAGE_PATHS
        }

    assert named == await routes() | {("GET", "/")}


@pytest.mark.parametrize("folder", ["", "presets", "router", "common/tools", "worker"])
def test_links_have_existing_targets(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / folder / target).exists(), target


def test_the_presets_file_is_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```ini\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        path = tmp_path / "presets.ini"
        path.write_text(block)
        assert read_presets(path).sections
