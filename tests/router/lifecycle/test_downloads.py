"""Downloads into the cache in the lifecycle: entry, progress, end, failure and cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_corral.common.base.errors import (
    ConfigError,
    InvalidRequest,
    NotFound,
    ServerFault,
    TooManyRequests,
    Unavailable,
)
from llama_corral.common.base.worker_reports import DOWNLOAD_ENV
from llama_corral.common.hub.gguf_names import canonical_name
from llama_corral.common.hub.hub_cache import repo_dir
from llama_corral.common.hub.remove import remove_cached
from llama_corral.common.hub.resolve import list_cached
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.preset import Preset
from llama_corral.router.library import Library
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.placement.states import ModelState
from llama_corral.router.reducer.downloads import MAX_RUNNING, MAX_WAITING
from local_hub import cache_repo
from memory_workers import InProcessLauncher
from router_tools import preset, presets

NAME = "me/repo:Q8_0"
FETCHED: dict[str, Any] = {"url": "http://hub/me/repo/m-Q8_0.gguf", "downloaded": 5, "total": 9}


class Router:
    def __init__(self, *entries: Preset, models_max: int = 1, environ: Mapping[str, str] | None = None) -> None:
        self.launcher = InProcessLauncher()
        self.sources = presets(*entries)
        self.lifecycle = Lifecycle(dict(self.sources), self.launcher, models_max=models_max, autoload=True)
        self.library = Library(Settings.of(), self.lifecycle, self._read, environ or {})
        self.source_error: ConfigError | None = None
        self.events: list[tuple[str, str, Any]] = []

    def _read(self) -> dict[str, Preset]:
        if self.source_error:
            raise self.source_error
        return dict(self.sources)

    async def listen(self) -> None:
        async with self.lifecycle.subscribe() as listener:
            while (event := await listener.get()) is not None:
                self.events.append((event.model, event.event, event.data))

    def told(self, event: str) -> list[Any]:
        return [data for _, name, data in self.events if name == event]

    def status(self, name: str) -> str | None:
        view = self.lifecycle.view(name)
        return None if view is None else view.status


@asynccontextmanager
async def router(*entries: Preset, **options: Any) -> AsyncIterator[Router]:
    made = Router(*entries, **options)
    listening = asyncio.create_task(made.listen())
    await settle()
    yield made
    closing = asyncio.create_task(made.lifecycle.close())
    await settle()
    for worker in made.launcher.alive:
        worker.leave()
    await closing
    await listening


async def settle() -> None:
    """Sources are read on another thread, so turns of the loop alone are not sufficient."""
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.to_thread(lambda: None)
    for _ in range(10):
        await asyncio.sleep(0)


async def ended(it: Router, event: str) -> None:
    async with asyncio.timeout(10):
        while not it.told(event):
            await settle()


async def test_a_finished_download_becomes_an_entry_of_the_cache() -> None:
    async with router(preset("a")) as it:
        await it.lifecycle.load("a")
        it.launcher["a"].ready()
        it.library.download(NAME)
        worker = it.launcher[NAME]
        assert worker.environ[DOWNLOAD_ENV]
        assert NAME in worker.arguments
        assert not it.launcher["a"].must_go, "a download takes no place"
        assert it.status(NAME) == "downloading"
        worker.report("downloading", **FETCHED)
        worker.report("downloading", **{**FETCHED, "downloaded": 9})
        view = it.lifecycle.view(NAME)
        assert view is not None
        assert view.progress == {FETCHED["url"]: {"done": 9, "total": 9}}
        it.sources[NAME] = preset(NAME, source="cache")
        worker.exit(0)
        await ended(it, "download_finished")
        assert it.status(NAME) == "unloaded"
        assert it.told("model_status")[-1] == {"status": "downloading"}
        assert [data["progress"][FETCHED["url"]]["done"] for data in it.told("download_progress")] == [5, 9]
        names = [name for _, name, _ in it.events]
        assert names.index("models_reload") < names.index("download_finished"), (
            "a listener finds it listed when the event arrives"
        )


@pytest.mark.parametrize("said", [True, False])
async def test_a_failed_download_is_published_with_its_reason(said: bool) -> None:
    async with router() as it:
        it.library.download(NAME)
        worker = it.launcher[NAME]
        worker.last_lines = ("no such thing",)
        if said:
            worker.report("failed", message="repository me/repo does not exist")
        worker.exit(1)
        await ended(it, "download_failed")
        (told,) = it.told("download_failed")
        assert ("does not exist" if said else "no such thing") in told["error"]
        assert it.status(NAME) is None
        it.library.download(NAME)  # a second try is allowed
        assert it.status(NAME) == "downloading"


async def test_unload_cancels_a_download_and_waits_for_its_end() -> None:
    async with router() as it:
        it.library.download(NAME)
        unloading = asyncio.create_task(it.lifecycle.unload(NAME))
        await settle()
        assert it.launcher[NAME].kill_asked
        assert not unloading.done()
        it.launcher[NAME].leave()
        await unloading
        assert it.status(NAME) is None
        assert it.told("download_failed") == [{"error": "cancelled"}]


async def test_a_downloading_model_is_not_used_and_is_kept_by_a_reload() -> None:
    async with router(preset("a")) as it:
        it.library.download(NAME)
        with pytest.raises(InvalidRequest, match="is not running"):
            async with it.lifecycle.lease(NAME):
                pass
        with pytest.raises(InvalidRequest, match="downloading"):
            await it.lifecycle.load(NAME)
        await it.library.reload()
        assert it.status(NAME) == ModelState.DOWNLOADING.value
        it.sources[NAME] = preset(NAME, source="cache")  # listed early: another program fetched it
        await it.library.reload()
        assert it.status(NAME) == ModelState.DOWNLOADING.value
        it.launcher[NAME].exit(0)
        await ended(it, "download_finished")
        assert it.status(NAME) == "unloaded"


async def test_a_name_that_cannot_be_downloaded_is_refused_immediately() -> None:
    async with router(preset("a", aliases=("x/y",)), environ={}) as it:
        for name, why in (
            ("", "missing"),
            ("llama3", "not a repository name"),
            ("a/b/c", "not a repository name"),
            ("a/b:", "not a repository name"),
            ("a/b:x y", "not a repository name"),
            ("a/b:../x", "not a repository name"),
            ("x/y", "exists"),
        ):
            with pytest.raises(InvalidRequest, match=why):
                it.library.download(name)
        it.library.download(NAME)
        with pytest.raises(InvalidRequest, match="already exists"):
            it.library.download(NAME)
        it.launcher.refusal = OSError("no more processes")
        with pytest.raises(ServerFault, match="no more processes"):
            it.library.download("me/other")
        assert it.status("me/other") is None
    with pytest.raises(Unavailable):
        it.library.download("me/other")
    offline = Library(Settings.of(), it.lifecycle, dict, {"HF_HUB_OFFLINE": "1"})
    with pytest.raises(InvalidRequest, match="HF_HUB_OFFLINE"):
        offline.download(NAME)


# -- many downloads --------------------------------------------------------------------------------------------------


async def test_two_downloads_run_at_a_time_and_others_wait_or_are_refused() -> None:
    async with router() as it:
        names = [f"me/m{number}:Q8_0" for number in range(MAX_RUNNING + MAX_WAITING)]
        for name in names:
            it.library.download(name)
            assert it.status(name) == "downloading"
        for _ in range(80):
            with pytest.raises(TooManyRequests, match="2 models are downloading, and 20 wait"):
                it.library.download("me/more")
        assert it.status("me/more") is None
        assert len(it.launcher.alive) == MAX_RUNNING
        await settle()
        assert it.told("model_status") == [{"status": "downloading"}] * len(names)
        for ended, name in enumerate(names):
            assert len(it.launcher.alive) == min(MAX_RUNNING, len(names) - ended)
            it.launcher[name].exit(1)
            await settle()
            assert it.status(name) is None
        assert len(it.told("download_failed")) == len(it.told("model_status")) == len(names)
        assert not it.lifecycle.downloads()


async def test_a_download_that_waits_can_be_cancelled_and_removed() -> None:
    async with router(environ={}) as it:
        names = [f"me/m{number}:Q8_0" for number in range(5)]
        for name in names:
            it.library.download(name)
        await it.lifecycle.unload(names[2])
        await it.lifecycle.cancel_download(names[3])
        assert [it.status(name) for name in names[2:]] == [None, None, "downloading"]
        it.library.download(names[2])
        it.launcher[names[0]].exit(1)
        await settle()
        assert [worker.is_alive for worker in map(it.launcher.__getitem__, names[1:2])] == [True]
        assert it.launcher[names[4]]
        assert len(it.launcher.alive) == MAX_RUNNING


async def test_a_download_that_waited_and_cannot_start_is_published() -> None:
    async with router() as it:
        for number in range(4):
            it.library.download(f"me/m{number}:Q8_0")
        it.launcher.refusal = OSError("no more processes")
        it.launcher["me/m0:Q8_0"].exit(1)
        await settle()
        failures = [data["error"] for data in it.told("download_failed")]
        assert [("no more processes" in failure) for failure in failures] == [False, True, True]
        assert it.lifecycle.downloads() == ["me/m1:Q8_0"]


# -- removing --------------------------------------------------------------------------------------------------------


async def test_removing_a_model_stops_it_and_deletes_its_files(tmp_path: Path) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path)}
    cache_repo(tmp_path, "me/repo", "m-Q8_0.gguf", "m-F16.gguf")

    async with router(preset(NAME, source="cache"), preset("a"), environ=environ) as it:
        await it.lifecycle.load(NAME)
        it.launcher[NAME].ready()
        removing = asyncio.create_task(it.library.remove(NAME))
        await settle()
        assert NAME in list_cached(environ), "not while it runs"
        it.sources.pop(NAME)
        it.launcher[NAME].leave()
        await removing
        assert list_cached(environ) == ["me/repo:F16"]
        assert it.status(NAME) is None
        assert it.events[-1][:2] == (NAME, "model_remove")
        with pytest.raises(NotFound):
            await it.library.remove(NAME)
        with pytest.raises(InvalidRequest, match="not in the cache"):
            await it.library.remove("a")
        with pytest.raises(InvalidRequest, match="missing"):
            await it.library.remove("")


async def test_a_removal_that_would_break_the_configuration_changes_nothing(tmp_path: Path) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path)}
    cache_repo(tmp_path, "me/repo", "m-Q8_0.gguf")
    entries = (preset(NAME, source="cache"), preset("v", base=NAME))

    async with router(*entries, environ=environ) as it:
        await it.lifecycle.load(NAME)
        it.launcher[NAME].ready()
        with pytest.raises(InvalidRequest, match="cannot be removed: it is the base of v"):
            await it.library.remove(NAME)
        del it.sources["v"]
        await it.library.reload()
        it.source_error = ConfigError("presets.ini:2: unknown key 'x'")
        with pytest.raises(ServerFault, match=r"nothing was changed.*presets\.ini:2"):
            await it.library.remove(NAME)
        assert it.status(NAME) == "loaded"
        assert list_cached(environ) == [NAME]


async def test_a_repository_is_found_under_every_spelling_of_its_quantization() -> None:
    entries = (preset(NAME, source="cache", options={"hf_repo": NAME}), preset("m:8b"))
    async with router(*entries, environ={}) as it:
        assert it.lifecycle.find("me/repo:q8_0") == NAME
        assert it.lifecycle.find("m:8B") is None
        with pytest.raises(InvalidRequest, match="already exists"):
            it.library.download("me/repo:q8_0")


async def test_removing_a_downloading_model_cancels_the_download(tmp_path: Path) -> None:
    async with router(environ={"LLAMA_CACHE": str(tmp_path)}) as it:
        it.library.download(NAME)
        unfinished = repo_dir(tmp_path, "me/repo") / "blobs" / "ab.downloadInProgress"
        unfinished.parent.mkdir(parents=True)
        unfinished.touch()
        removing = asyncio.create_task(it.library.remove(NAME))
        await settle()
        it.launcher[NAME].leave()
        await removing
        assert not unfinished.exists()


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("me/repo:Q8_0", ["me/repo:F16"]),
        ("me/repo:q8_0", ["me/repo:F16"]),
        ("me/repo:F16", ["me/repo:Q8_0"]),
        ("me/repo", []),
        ("me/other:F16", ["me/repo:F16", "me/repo:Q8_0"]),
        ("../repo:F16", ["me/repo:F16", "me/repo:Q8_0"]),
    ],
)
def test_only_the_named_model_of_a_repository_is_removed(tmp_path: Path, name: str, left: list[str]) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path)}
    shards = [f"big-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    cache_repo(tmp_path, "me/repo", *shards, "m-F16.gguf", "mmproj-F16.gguf")
    remove_cached(environ, name)
    assert sorted(list_cached(environ)) == left
    folder = repo_dir(tmp_path, "me/repo")
    files = {path.name for path in folder.rglob("*.gguf")}
    assert len(list(folder.glob("blobs/*"))) == len(files)
    assert ("mmproj-F16.gguf" in files) == bool(left)
    assert (shards[1] in files) == (canonical_name("me/repo:Q8_0") in left)


def test_removing_the_last_model_removes_its_repository(tmp_path: Path) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path)}
    cache_repo(tmp_path, "me/repo", "m-F16.gguf", "mmproj-F16.gguf")
    remove_cached(environ, "me/repo:F16", keep_unfinished=True)
    assert repo_dir(tmp_path, "me/repo").exists(), "another file of it is on its way"
    remove_cached(environ, "me/repo:F16")
    assert not repo_dir(tmp_path, "me/repo").exists()


# -- reloads ---------------------------------------------------------------------------------------------------------


async def test_many_reloads_at_the_same_time_read_the_sources_twice() -> None:
    async with router(preset("a")) as it:
        started, may_go, n_reads = threading.Event(), threading.Event(), 0

        def read() -> dict[str, Preset]:
            nonlocal n_reads
            n_reads += 1
            started.set()
            assert may_go.wait(10)
            if n_reads > 2:
                raise ConfigError("presets.ini:1: wrong")
            return dict(it.sources)

        library = Library(Settings.of(), it.lifecycle, read, {})
        first = asyncio.create_task(library.reload())
        await asyncio.to_thread(started.wait, 10)
        it.sources["b"] = preset("b")
        others = [asyncio.create_task(library.reload()) for _ in range(50)]
        await asyncio.sleep(0)
        others[0].cancel()
        may_go.set()
        await first
        await asyncio.gather(*others[1:])
        assert n_reads == 2
        assert it.status("b") == "unloaded", "a reload reads what was there when it was asked for"
        answers = await asyncio.gather(*(library.reload() for _ in range(5)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ServerFault] * 5
