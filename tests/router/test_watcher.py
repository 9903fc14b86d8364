"""Test that edited sources are read again, and that a broken edit changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.sources import Preset, load_presets
from llama_corral.router.lifecycle.lifecycle import Lifecycle
from llama_corral.router.watcher import watch
from router_tools import PATIENCE, fake_launcher


@contextlib.asynccontextmanager
async def watched(settings: Settings, environ: dict[str, str]) -> AsyncIterator[Lifecycle]:
    def read() -> dict[str, Preset]:
        return load_presets(settings, {}, environ)

    lifecycle = Lifecycle(read(), fake_launcher("spawn"), models_max=1, autoload=True)
    watching = asyncio.create_task(watch(settings, read, lifecycle))
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


async def test_without_sources_there_is_nothing_to_watch() -> None:
    lifecycle = Lifecycle({}, fake_launcher("spawn"), models_max=1, autoload=True)
    await asyncio.wait_for(watch(Settings.of(), dict, lifecycle), PATIENCE)
    await lifecycle.close()
