"""Test that edited sources are read again, and that a broken edit changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.preset import Preset
from llama_corral.presets.sources import PresetReader, load_presets
from llama_corral.router import source_stamps
from llama_corral.router import watcher as watcher_module
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.source_stamps import source_places, survey
from llama_corral.router.watcher import SourceWatcher, reload_presets
from router_tools import PATIENCE, fake_launcher, until


@contextlib.asynccontextmanager
async def watched(settings: Settings, environ: dict[str, str]) -> AsyncIterator[Lifecycle]:
    def read() -> dict[str, Preset]:
        return load_presets(settings, {}, environ)

    watcher = SourceWatcher(source_places(settings, environ))
    lifecycle = Lifecycle(read(), fake_launcher("spawn"), models_max=1, autoload=True)
    watching = asyncio.create_task(watcher.watch(lambda: reload_presets(read, lifecycle)))
    try:
        yield lifecycle
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await lifecycle.close()


async def repeat_until(noticed: asyncio.Event, edit: Callable[[], object]) -> None:
    """Repeat the write, since a watch that is being set up may miss the first one."""
    async with asyncio.timeout(PATIENCE):
        while not noticed.is_set():
            edit()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(noticed.wait(), 1)


async def notice_reload(lifecycle: Lifecycle, noticed: asyncio.Event, ready: asyncio.Event) -> None:
    async with lifecycle.subscribe() as listener:
        ready.set()
        while (event := await listener.get()) is not None:
            if event.body()["event"] == "models_reload":
                noticed.set()


@contextlib.asynccontextmanager
async def reloads_of(lifecycle: Lifecycle) -> AsyncIterator[asyncio.Event]:
    noticed, ready = asyncio.Event(), asyncio.Event()
    listening = asyncio.create_task(notice_reload(lifecycle, noticed, ready))
    await ready.wait()
    yield noticed
    listening.cancel()


async def test_an_edited_presets_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "presets.ini"
    path.write_text("[one]\nmodel = one.gguf\n")

    async with watched(Settings.of(models_preset=str(path)), {"LLAMA_CACHE": str(tmp_path / "cache")}) as lifecycle:
        async with reloads_of(lifecycle) as noticed:
            await repeat_until(noticed, lambda: path.write_text("[one]\nmodel = one.gguf\n[two]\nmodel = two.gguf\n"))
        assert [view.name for view in lifecycle.views()] == ["one", "two"]


async def test_a_new_model_in_the_directory_is_noticed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "a.gguf").touch()

    def put_model_anew() -> None:
        (models / "b.gguf").unlink(missing_ok=True)
        (models / "b.gguf").touch()

    async with watched(Settings.of(models_dir=str(models)), {"LLAMA_CACHE": str(tmp_path / "cache")}) as lifecycle:
        async with reloads_of(lifecycle) as noticed:
            await repeat_until(noticed, put_model_anew)
        assert [view.name for view in lifecycle.views()] == ["a", "b"]


async def test_a_broken_edit_keeps_the_presets_and_logs_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "presets.ini"
    path.write_text("[one]\nmodel = one.gguf\n")
    noticed = asyncio.Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "the old presets are kept" in record.getMessage():
                noticed.set()

    handler = Notice()
    logging.getLogger("corral.router").addHandler(handler)

    try:
        async with watched(Settings.of(models_preset=str(path)), {"LLAMA_CACHE": str(tmp_path / "cache")}) as lifecycle:
            await repeat_until(noticed, lambda: path.write_text("[*]\nmodle = one.gguf\n"))
            assert [view.name for view in lifecycle.views()] == ["one"]
    finally:
        logging.getLogger("corral.router").removeHandler(handler)
    assert f"{path}:2:" in caplog.text
    assert "model" in caplog.text


# -- every way in which a source changes -------------------------------------------------------------------------------

REPO = "models--me--repo"
COMMIT, NEXT_COMMIT = "1" * 40, "2" * 40


def section(name: str) -> str:
    return f"[{name}]\nmodel = {name}.gguf\n"


def put(path: Path, text: str = "") -> Path:
    """Write a file as editors do: under another name, which is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("unfinished")
    temporary.write_text(text)
    return temporary.replace(path)


def link(path: Path, target: Path | str) -> None:
    """Create or switch a link, as `ln -s` and `mv -T` do."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.symlink_to(target)
    temporary.replace(path)


@dataclass
class Scene:
    """A machine's files, and the options that name them."""

    root: Path
    lifecycle: Lifecycle | None = None

    async def shows(self, *names: str) -> None:
        """Wait until exactly these models are there. Each edit is made once, so it must be noticed."""
        assert self.lifecycle is not None
        lifecycle = self.lifecycle
        await until(lambda: [view.name for view in lifecycle.views()] == sorted(names))


Change = Callable[[Scene], Awaitable[None]]
CHANGES: dict[str, tuple[Callable[[Path], dict[str, str]], Change]] = {}


def change(prepare: Callable[[Path], dict[str, str]]) -> Callable[[Change], Change]:
    def add(function: Change) -> Change:
        CHANGES[function.__name__] = (prepare, function)
        return function

    return add


def linked_file(root: Path) -> dict[str, str]:
    put(root / "far/away/real.ini", section("a"))
    link(root / "models.ini", "far/away/real.ini")
    return {"models_preset": str(root / "models.ini")}


def releases(root: Path) -> dict[str, str]:
    """Two links: `current` names `stage`, `stage` names a release."""
    for number, name in ((1, "a"), (2, "b")):
        put(root / f"rel/v{number}/models.ini", section(name))
    link(root / "rel/stage", "v1")
    link(root / "rel/current", "stage")
    return {"models_preset": str(root / "rel/current/models.ini")}


def linked_models(root: Path) -> dict[str, str]:
    put(root / "disk1/a.gguf")
    put(root / "disk2/b.gguf")
    link(root / "models", "disk1")
    return {"models_dir": str(root / "models")}


def models(root: Path) -> dict[str, str]:
    put(root / "models/a.gguf")
    put(root / "elsewhere/one/x.gguf")
    return {"models_dir": str(root / "models")}


def only_the_cache(_: Path) -> dict[str, str]:
    return {}


@change(linked_file)
async def the_target_of_a_link_is_edited(scene: Scene) -> None:
    (scene.root / "far/away/real.ini").write_text(section("b"))
    await scene.shows("b")


@change(linked_file)
async def the_target_of_a_link_is_replaced(scene: Scene) -> None:
    put(scene.root / "far/away/real.ini", section("b"))
    await scene.shows("b")
    put(scene.root / "far/away/real.ini", section("c"))
    await scene.shows("c")


@change(linked_file)
async def an_edit_keeps_size_and_time(scene: Scene) -> None:
    path = scene.root / "far/away/real.ini"
    before = path.stat()
    path.write_text(section("b"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    await scene.shows("b")


@change(linked_file)
async def the_folder_of_a_target_is_replaced(scene: Scene) -> None:
    (scene.root / "far").rename(scene.root / "old")
    put(scene.root / "far/away/real.ini", section("b"))
    await scene.shows("b")
    (scene.root / "far/away/real.ini").write_text(section("c"))
    await scene.shows("c")


@change(releases)
async def a_link_to_a_folder_is_switched(scene: Scene) -> None:
    link(scene.root / "rel/current", "v2")
    await scene.shows("b")
    (scene.root / "rel/current/models.ini").write_text(section("c"))
    await scene.shows("c")


@change(releases)
async def the_second_link_of_a_chain_is_switched(scene: Scene) -> None:
    link(scene.root / "rel/stage", "v2")
    await scene.shows("b")
    put(scene.root / "rel/current/models.ini", section("c"))
    await scene.shows("c")
    link(scene.root / "rel/stage", "v1")
    await scene.shows("a")


@change(releases)
async def the_files_folder_is_away_for_a_moment(scene: Scene) -> None:
    (scene.root / "rel").rename(scene.root / "away")
    put(scene.root / "rel/current/models.ini", section("b"))
    await scene.shows("b")
    (scene.root / "rel/current/models.ini").write_text(section("c"))
    await scene.shows("c")


@change(linked_models)
async def a_linked_models_directory_is_switched(scene: Scene) -> None:
    link(scene.root / "models", "disk2")
    await scene.shows("b")
    put(scene.root / "disk2/c.gguf")
    await scene.shows("b", "c")


@change(models)
async def a_folder_of_the_models_directory_is_filled_later(scene: Scene) -> None:
    (scene.root / "models/new").mkdir()
    (scene.root / "models/d.gguf").touch()
    await scene.shows("a", "d")
    (scene.root / "models/new/x.gguf").touch()
    await scene.shows("a", "d", "new")


@change(models)
async def the_models_directory_is_removed_and_made_again(scene: Scene) -> None:
    shutil.rmtree(scene.root / "models")
    put(scene.root / "models/b.gguf")
    await scene.shows("b")
    put(scene.root / "models/c.gguf")
    await scene.shows("b", "c")


@change(models)
async def a_linked_folder_of_the_models_directory_is_emptied(scene: Scene) -> None:
    link(scene.root / "models/other", "../elsewhere/one")
    await scene.shows("a", "other")
    (scene.root / "elsewhere/one/x.gguf").unlink()
    await scene.shows("a")


@change(models)
async def the_target_of_a_linked_model_comes_and_goes(scene: Scene) -> None:
    link(scene.root / "models/b.gguf", "../elsewhere/late.gguf")
    put(scene.root / "models/c.gguf")
    await scene.shows("a", "c")
    put(scene.root / "elsewhere/late.gguf")
    await scene.shows("a", "b", "c")
    (scene.root / "elsewhere/late.gguf").unlink()
    await scene.shows("a", "c")


@change(only_the_cache)
async def another_program_fills_the_cache(scene: Scene) -> None:
    """In the order in which `huggingface_hub` writes, slowly; then a second file and a new commit."""
    repo = scene.root / "cache" / REPO
    put(repo / "blobs/1")
    put(repo / "refs/main", COMMIT)
    await asyncio.sleep(0)
    (repo / f"snapshots/{COMMIT}").mkdir(parents=True)
    link(repo / f"snapshots/{COMMIT}/x-Q8_0.gguf", "../../blobs/1")
    await scene.shows("me/repo:Q8_0")
    put(repo / f"snapshots/{COMMIT}/deep/x-Q4_0.gguf")
    await scene.shows("me/repo:Q8_0", "me/repo:Q4_0")
    put(repo / f"snapshots/{NEXT_COMMIT}/x-F16.gguf")
    (repo / "refs/main").write_text(NEXT_COMMIT)
    await scene.shows("me/repo:F16")
    shutil.rmtree(repo)
    await scene.shows()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "POLL_S", 0.2)
    monkeypatch.setattr(watcher_module, "SETTLE_S", 0.05)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_noticed(name: str, tmp_path: Path) -> None:
    prepare, edit = CHANGES[name]
    settings = Settings.of(**prepare(tmp_path))
    async with watched(settings, {"LLAMA_CACHE": str(tmp_path / "cache")}) as lifecycle:
        await edit(Scene(tmp_path, lifecycle))


@pytest.mark.usefixtures("quick")
async def test_a_change_between_the_survey_and_the_watch_is_noticed(tmp_path: Path) -> None:
    """Sources are read at the start, but watched only when the router listens."""
    path = put(tmp_path / "presets.ini", section("a"))
    watcher = SourceWatcher(source_places(Settings.of(models_preset=str(path)), {"LLAMA_CACHE": str(tmp_path)}))
    path.write_text(section("b"))
    reloaded = asyncio.Event()

    async def reload() -> None:
        reloaded.set()

    watching = asyncio.create_task(watcher.watch(reload))
    await asyncio.wait_for(reloaded.wait(), PATIENCE)
    watching.cancel()


async def test_where_folders_cannot_be_watched_changes_are_noticed_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*folders: str, **_: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(watcher_module, "awatch", refuse)
    prepare, edit = CHANGES["the_second_link_of_a_chain_is_switched"]
    settings = Settings.of(**prepare(tmp_path))
    async with watched(settings, {"LLAMA_CACHE": str(tmp_path / "cache")}) as lifecycle:
        await edit(Scene(tmp_path, lifecycle))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [warning for warning in warnings if "OS file watch limit reached" in warning] == [
        "changes of the model sources cannot be watched, so their metadata is compared every 1 s: "
        "OS file watch limit reached"
    ]


@pytest.mark.usefixtures("quick")
async def test_a_reload_that_fails_unexpectedly_does_not_end_the_watch(tmp_path: Path) -> None:
    path = put(tmp_path / "presets.ini", section("a"))
    watcher = SourceWatcher(source_places(Settings.of(models_preset=str(path)), {"LLAMA_CACHE": str(tmp_path)}))
    calls = 0

    async def reload() -> None:
        nonlocal calls
        calls += 1
        raise OSError("a disk has failed")

    watching = asyncio.create_task(watcher.watch(reload))
    for count in (1, 2):
        put(path, section("b" * count))
        await until(lambda count=count: calls == count)
    watching.cancel()


def test_unchanged_sources_and_downloads_in_progress_show_no_change(tmp_path: Path) -> None:
    put(tmp_path / "cache" / REPO / "blobs/1.incomplete")
    put(tmp_path / "models/a.gguf")
    path = put(tmp_path / "presets.ini", section("a"))
    given = {"models_preset": str(path), "models_dir": str(tmp_path / "models")}
    before = survey(source_places(Settings.of(**given), {"LLAMA_CACHE": str(tmp_path / "cache")}))
    (tmp_path / "cache" / REPO / "blobs/1.incomplete").write_text("more")
    (tmp_path / "models/a.gguf").write_text("a model that is copied slowly")
    (tmp_path / "notes.txt").touch()
    assert not before.is_outdated


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path: Path) -> None:
    link(tmp_path / "again", ".")
    folders = survey(source_places(Settings.of(models_dir=str(tmp_path)), {"LLAMA_CACHE": str(tmp_path / "x")})).folders
    assert folders == {str(tmp_path)}


@pytest.mark.usefixtures("quick")
async def test_a_directory_with_too_many_folders_is_watched_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (watcher_module, source_stamps):
        monkeypatch.setattr(module, "MAX_FOLDERS", 3)
    for name in ("a", "b", "c"):
        put(tmp_path / f"models/{name}/x.gguf")
    settings = Settings.of(models_dir=str(tmp_path / "models"))
    async with watched(settings, {"LLAMA_CACHE": str(tmp_path / "cache")}) as lifecycle:
        put(tmp_path / "models/d.gguf")
        await Scene(tmp_path, lifecycle).shows("a", "b", "c", "d")
    assert caplog.text.count("has very many folders: changes are noticed only in 3 of them") == 1


@pytest.mark.usefixtures("quick")
async def test_a_cache_that_does_not_exist_yet_is_noticed(tmp_path: Path) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path / "not/yet/there")}
    async with watched(Settings.of(), environ) as lifecycle:
        repo = tmp_path / "not/yet/there" / REPO
        put(repo / f"snapshots/{COMMIT}/x-Q8_0.gguf")
        put(repo / "refs/main", COMMIT)
        await Scene(tmp_path, lifecycle).shows("me/repo:Q8_0")


@pytest.mark.parametrize("key", ["model", "mmproj", "model-draft"])
async def test_a_model_file_that_appears_or_goes_away_is_noticed_wherever_it_is(tmp_path: Path, key: str) -> None:
    settings, environ = settings_for(tmp_path, f"[x]\nmodel = /dev/null\n{key} = {tmp_path}/disk/deep/x.gguf\n")
    read = PresetReader(settings, {}, environ)
    watcher = SourceWatcher(source_places(settings, environ), read.files)
    lifecycle = Lifecycle(read(), fake_launcher("spawn"), models_max=1, autoload=True)
    watching = asyncio.create_task(watcher.watch(lambda: reload_presets(read, lifecycle)))

    def is_usable() -> bool:
        view = lifecycle.view("x")
        return view is not None and view.is_usable

    try:
        assert not is_usable()
        (tmp_path / "disk" / "deep").mkdir(parents=True)
        (tmp_path / "disk" / "deep" / "x.gguf").touch()
        await until(is_usable)
        shutil.rmtree(tmp_path / "disk")
        await until(lambda: not is_usable())
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await lifecycle.close()


async def test_sources_that_cannot_be_read_are_not_read_again_for_a_file_that_has_appeared(tmp_path: Path) -> None:
    settings, environ = settings_for(tmp_path, f"[x]\nmodel = {tmp_path}/x.gguf\n")
    read = PresetReader(settings, {}, environ)
    watcher = SourceWatcher(source_places(settings, environ), read.files)
    read()
    attempts: list[int] = []

    async def reload() -> None:
        attempts.append(1)  # `read.files()` stays as it was

    watching = asyncio.create_task(watcher.watch(reload))
    (tmp_path / "x.gguf").touch()
    await until(lambda: attempts)
    for name in ("y.gguf", "z.gguf"):  # more events of the same folder
        (tmp_path / name).touch()
        await asyncio.sleep(watcher_module.POLL_S)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert len(attempts) <= 3, "once for the file, and once for each change of the folder"


def settings_for(tmp_path: Path, ini: str) -> tuple[Settings, dict[str, str]]:
    (tmp_path / "presets.ini").write_text(ini)
    settings = Settings.of(models_preset=str(tmp_path / "presets.ini"))
    return settings, {"LLAMA_CACHE": str(tmp_path / "cache")}
