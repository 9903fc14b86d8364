"""The watcher of the model sources: how soon it reloads, how often, and what happens if a reload fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from file_edits import link, put
from llama_corral.presets.sources import PresetReader
from llama_corral.router import source_stamps
from llama_corral.router import watcher as watcher_module
from llama_corral.router.watcher import SourceWatcher
from router_tools import PATIENCE, until
from watcher_tools import places, section, shows, watched, watching

NOTICED_S = 3.0
"""A change is to be noticed within about 2 s."""


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda root: (root / "v1/presets.ini").write_text(section("a") + section("c")), ["a", "c"]),
        (lambda root: link(root / "current", "v2"), ["b"]),  # no event reports this
        (lambda root: put(root / "models/c.gguf"), ["a", "c"]),
    ],
)
async def test_a_change_is_noticed_soon_and_announced(
    tmp_path: Path, edit: Callable[[Path], object], names: list[str]
) -> None:
    (tmp_path / "models").mkdir()
    for release, name in (("v1", "a"), ("v2", "b")):
        put(tmp_path / release / "presets.ini", section(name))
    link(tmp_path / "current", "v1")
    options = {"models_preset": str(tmp_path / "current/presets.ini"), "models_dir": str(tmp_path / "models")}
    async with watched(tmp_path, **options) as lifecycle, lifecycle.subscribe() as events:
        edit(tmp_path)
        async with asyncio.timeout(NOTICED_S):
            while (event := await events.get()) is None or event.body()["event"] != "models_reload":
                pass
        assert [view.name for view in lifecycle.views()] == names


async def test_a_broken_edit_keeps_the_presets_and_logs_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(tmp_path / "presets.ini", section("one"))
    async with watched(tmp_path, models_preset=str(path)) as lifecycle:
        path.write_text("[*]\nmodle = one.gguf\n")
        await until(lambda: "the old presets are kept" in caplog.text)
        assert [view.name for view in lifecycle.views()] == ["one"]
    assert f"{path}:2:" in caplog.text
    assert "model" in caplog.text


@pytest.mark.usefixtures("quick_watcher")
async def test_a_change_between_the_survey_and_the_watch_is_noticed(tmp_path: Path) -> None:
    """Sources are read at the start, but watched only when the router listens."""
    path = put(tmp_path / "presets.ini", section("a"))
    watcher = SourceWatcher(places(tmp_path, models_preset=str(path)))
    path.write_text(section("b"))
    reloaded = asyncio.Event()

    async def reload() -> None:
        reloaded.set()

    async with watching(watcher, reload):
        await asyncio.wait_for(reloaded.wait(), PATIENCE)


@pytest.mark.usefixtures("quick_watcher")
async def test_a_reload_that_fails_unexpectedly_does_not_end_the_watch(tmp_path: Path) -> None:
    path = put(tmp_path / "presets.ini", section("a"))
    calls = 0

    async def reload() -> None:
        nonlocal calls
        calls += 1
        raise OSError("a disk has failed")

    async with watching(SourceWatcher(places(tmp_path, models_preset=str(path))), reload):
        for count in (1, 2):
            put(path, section("b" * count))
            await until(lambda count=count: calls == count)


@pytest.mark.usefixtures("quick_watcher")
async def test_a_file_that_appears_causes_one_attempt_to_read_broken_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last complete reading did not find the file, and a reading that fails cannot say that it is there now."""
    looks, files = 0, PresetReader.files

    def counted(reader: PresetReader) -> Mapping[str, bool]:
        nonlocal looks
        looks += 1
        return files(reader)

    def attempts() -> int:
        return caplog.text.count("the old presets are kept")

    monkeypatch.setattr(PresetReader, "files", counted)
    file = tmp_path / "disk/a.gguf"
    path = put(tmp_path / "presets.ini", f"[a]\nmodel = {file}\n")
    async with watched(tmp_path, models_preset=str(path)):
        put(path, "[*]\nmodle = a.gguf\n")
        await until(lambda: attempts() == 1)
        put(file)
        await until(lambda: attempts() > 1)
        looks = 0
        await until(lambda: looks > 10)
        assert attempts() == 2, "one for the edit, and one for the file"


@pytest.mark.usefixtures("quick_watcher")
async def test_a_directory_with_too_many_folders_is_watched_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (watcher_module, source_stamps):
        monkeypatch.setattr(module, "MAX_FOLDERS", 3)
    for name in ("a", "b", "c"):
        put(tmp_path / f"models/{name}/x.gguf")
    async with watched(tmp_path, models_dir=str(tmp_path / "models")) as lifecycle:
        put(tmp_path / "models/d.gguf")
        await shows(lifecycle, "a", "b", "c", "d")
    assert caplog.text.count("has very many folders: changes are noticed only in 3 of them") == 1
