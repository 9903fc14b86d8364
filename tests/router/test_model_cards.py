"""Lists of many models: headers are read once, lists do not wait long for them, and other requests run in between."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from file_edits import overwrite, touch
from llama_corral.common.hub.model_card import read_brief_card
from llama_corral.presets.layer import ConfigValue
from llama_corral.presets.preset import Preset
from llama_corral.router.library import reload_sources
from llama_corral.router.model_cards import ModelCards
from local_hub import cache_repo
from router_http import gateway
from router_tools import PATIENCE, preset

MANY = 300


@pytest.fixture
def many(models: Path, tmp_path: Path) -> list[Preset]:
    """Models with different files, which are all alike."""
    (tmp_path / "0.gguf").write_bytes((models / "tiny-llama.gguf").read_bytes())
    for number in range(1, MANY):
        os.link(tmp_path / "0.gguf", tmp_path / f"{number}.gguf")
    return [preset(f"m{number:03}", str(tmp_path / f"{number}.gguf")) for number in range(MANY)]


async def test_a_list_reads_no_file_a_second_time(many: list[Preset], tmp_path: Path) -> None:
    async with gateway(*many) as it:
        first = (await it.client.get("/api/tags")).json()["models"]
        assert [entry["details"]["family"] for entry in first] == ["llama"] * MANY
        file = tmp_path / "0.gguf"
        overwrite(file)
        assert (await it.client.get("/api/tags")).json()["models"] == first
        touch(file)
        again = (await it.client.get("/api/tags")).json()["models"]
        assert [entry["details"]["family"] for entry in again] == [""] * MANY


async def test_a_list_does_not_wait_for_headers(many: list[Preset]) -> None:
    cards = ModelCards({}, patience=0)
    first = await cards.brief(many)
    assert first["m007"].size > 0, "sizes need no header"
    async with asyncio.timeout(PATIENCE):
        found = await cards.brief(many)
        while not all(card.is_read for card in found.values()):
            found = await cards.brief(many)
    assert {card.architecture for card in found.values()} == {"llama"}


async def test_a_list_of_known_models_does_not_wait_for_others(many: list[Preset]) -> None:
    cards = ModelCards({}, patience=1e6)
    known, others = many[:1], many[1:]
    await cards.brief(known)
    async with asyncio.timeout(PATIENCE):
        reading = asyncio.create_task(cards.brief(others))
        while not reading.done():
            assert (await cards.brief(known))["m000"].is_read


async def test_the_file_of_a_cached_model_is_searched_again_after_a_reload(tmp_path: Path) -> None:
    cache, repo = tmp_path / "cache", "user/one"
    cards = ModelCards({"LLAMA_CACHE": str(cache)})
    layer = {"hf_repo": ConfigValue(f"{repo}:Q8_0", "the cache")}
    cached = Preset(f"{repo}:Q8_0", "cache", layer)
    assert (await cards.brief([cached]))[cached.name].path is None
    cache_repo(cache, repo, "one-Q8_0.gguf")
    found = (await cards.brief([cached]))[cached.name].path
    assert found is not None
    assert found.name == "one-Q8_0.gguf"
    cache_repo(cache, repo, "two-Q8_0.gguf")
    found.unlink()
    async with gateway(cached) as it:
        await reload_sources(lambda: {cached.name: Preset(cached.name, "cache", dict(layer))}, it.lifecycle)
        view = it.lifecycle.view(cached.name)
    assert view is not None
    path = (await cards.brief([view.preset]))[cached.name].path
    assert path is not None
    assert path.name == "two-Q8_0.gguf"


async def test_other_tasks_run_while_a_list_is_built(many: list[Preset]) -> None:
    async with gateway(*many) as it:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(other())
        names = await it.lifecycle.each_view(lambda view: view.name)
        running.cancel()
        assert names == [model.name for model in many]
        assert turns >= 4


async def test_a_reload_without_a_change_keeps_the_presets(many: list[Preset]) -> None:
    """Equal presets are compared in the thread that reads them, so that applying them takes no time."""
    async with gateway(*many) as it:
        before = it.lifecycle.presets()
        changed = preset("m001", str(many[1].layer["model"].text), ttl=5.0)
        copies = {model.name: preset(model.name, model.layer["model"].text) for model in many}
        await reload_sources(lambda: {**copies, "m001": changed}, it.lifecycle)
        after = it.lifecycle.presets()
        assert {name for name in after if after[name] is not before[name]} == {"m001"}
        view = it.lifecycle.view("m001")
        assert view is not None
        assert view.preset is changed
        assert read_brief_card(Path(changed.layer["model"].text)).architecture == "llama"
