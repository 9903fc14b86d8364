"""The prompt cache on disk: prompts are restored for the same model only, and failures cause no harm."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import engine_tools
import psutil
import pytest
from engine_tools import ask, asleep
from llama_corral.common.base.private_directory import PrivateDirectory
from llama_corral.worker.engine.cache import disk_cache, disk_store
from llama_corral.worker.engine.messages import Finished, Sampling
from llama_corral.worker.engine.runner import Engine
from media_engine import ALL, KINDS, M, look, seeing

PROMPT = [1, *(40 + i % 60 for i in range(200))]
OTHER = [1, *(45 + i % 50 for i in range(150))]


@asynccontextmanager
async def running(model: Path, directory: Path | None, **settings: Any) -> AsyncIterator[Engine]:
    """Run an engine with a disk cache. `directory`: a shared one; None: a private one, as a worker creates."""
    disk = PrivateDirectory("corral-test-", str(directory or ""), parent=str(model.parent))
    async with engine_tools.running(model, disk=disk, **{"parallel": 2, **settings}) as engine:
        yield engine
    disk.close()


async def turn(model: Path, directory: Path | None, prompt: list[int] = PROMPT, **settings: Any) -> Finished:
    """Load the model, return one answer, unload the model."""
    async with running(model, directory, **settings) as engine, engine.use() as loaded:
        return await ask(loaded, prompt).one()


def files(directory: Path, pattern: str = "*.prompt") -> list[Path]:
    return sorted(directory.glob(pattern))


def next_turn(first: Finished, prompt: list[int] = PROMPT) -> list[int]:
    return [*prompt, *first.tokens, 50, 51, 52]


@pytest.mark.parametrize("settings", [{}, {"kv_unified": True}, {"cache_ram": 0}, {"cache_type_k": "f32"}], ids=str)
async def test_another_process_reuses_a_saved_conversation(
    llama: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    first = await turn(llama, tmp_path, **settings)
    assert len(files(tmp_path)) == 1
    assert files(tmp_path)[0].stat().st_mode & 0o777 == 0o600
    prompt = next_turn(first)
    second = await turn(llama, tmp_path, prompt, **settings)
    assert second.timings.cache_n == len(PROMPT) + len(first.tokens) - 1
    plain = await turn(llama, tmp_path / "off", prompt, cache_disk=0, **settings)
    assert (second.tokens, plain.timings.cache_n) == (plain.tokens, 0)
    assert len(files(tmp_path)) == 1, "the longer conversation stands for the shorter one"
    again = await turn(llama, tmp_path, prompt, **settings)
    assert (again.tokens, again.timings.cache_n) == (second.tokens, len(prompt) - 1)


@pytest.mark.parametrize("model", ["tiny-gemma3.gguf", "tiny-mamba.gguf"])
async def test_sliding_window_and_recurrent_states_are_restored(models: Path, tmp_path: Path, model: str) -> None:
    settings = {"ubatch_size": 64, "parallel": 1}
    first = await turn(models / model, tmp_path, **settings)
    prompt = next_turn(first)
    second = await turn(models / model, tmp_path, prompt, **settings)
    plain = await turn(models / model, None, prompt, cache_disk=0, **settings)
    assert (second.tokens, second.timings.cache_n) == (plain.tokens, len(prompt) - 4)
    assert plain.timings.cache_n == 0


async def test_prompts_in_host_memory_are_saved_too(llama: Path, tmp_path: Path) -> None:
    async with running(llama, tmp_path, parallel=1) as engine, engine.use() as loaded:
        await ask(loaded, PROMPT).one()
        await ask(loaded, OTHER).one()
        await ask(loaded, [1, 2, 3]).one()
    assert len(files(tmp_path)) == 2, "short ones are not worth it"
    async with running(llama, tmp_path, parallel=1) as engine, engine.use() as loaded:
        both = await asyncio.gather(ask(loaded, PROMPT).one(), ask(loaded, OTHER).one())
        assert [one.timings.cache_n for one in both] == [len(PROMPT) - 1, len(OTHER) - 1]


async def test_a_prompt_that_another_worker_saves_does_not_stop_the_others(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def create_locked(path: Path) -> IO[bytes]:
        opened.append(path)
        if len(opened) == 1:
            path.touch()  # as by another worker
        return really_create(path)

    really_create = disk_store.create_locked
    monkeypatch.setattr(disk_store, "create_locked", create_locked)
    async with running(llama, tmp_path, parallel=1) as engine, engine.use() as loaded:
        await ask(loaded, PROMPT).one()
        await ask(loaded, OTHER).one()
    assert len(opened) == 2
    assert len(files(tmp_path)) == 1


async def test_conversations_with_a_common_prefix_are_distinguished(llama: Path, tmp_path: Path) -> None:
    one, other = [*PROMPT, *(40 + i for i in range(150))], [*PROMPT, *(90 + i for i in range(100))]

    await turn(llama, tmp_path, one, parallel=1)
    async with running(llama, tmp_path, parallel=1) as engine, engine.use() as loaded:
        assert (await ask(loaded, other).one()).timings.cache_n == len(PROMPT)
        assert (await ask(loaded, one).one()).timings.cache_n == len(one) - 1, "most of the slot would serve too"
        await ask(loaded, [200 + i for i in range(100)]).one()
        assert (await ask(loaded, other).one()).timings.cache_n == len(other) - 1, "what gave way is kept"


async def test_parallel_requests_with_one_prefix_read_it_once(llama: Path, tmp_path: Path) -> None:
    await turn(llama, tmp_path, kv_unified=True)
    async with running(llama, tmp_path, parallel=4, kv_unified=True) as engine, engine.use() as loaded:
        prompts = [[*PROMPT, 50 + k] for k in range(4)]
        results = await asyncio.gather(*(ask(loaded, prompt).one() for prompt in prompts))
        assert [one.timings.cache_n for one in results] == [len(PROMPT)] * 4


@pytest.mark.parametrize("kind", [*KINDS, "recurrent"])
async def test_images_and_audio_are_restored(models: Path, tmp_path: Path, kind: str) -> None:
    text, file = f"What is {M} here" + " and there" * 40, ALL[kind][2][0]

    async def look_once(text: str, **settings: Any) -> Finished:
        disk = PrivateDirectory("", str(tmp_path))
        async with seeing(models, kind, disk=disk, **settings) as engine, engine.use() as loaded:
            return await look(loaded, text, file).one()

    first = await look_once(text)
    longer = text + " or elsewhere"
    second, plain = await look_once(longer), await look_once(longer, cache_disk=0)
    assert (second.tokens, plain.timings.cache_n) == (plain.tokens, 0)
    assert second.timings.cache_n >= 0.9 * first.n_prompt


async def test_drafting_works_after_a_restore(llama: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"draft": llama, "spec_type": ("draft-simple",)}
    first = await turn(llama, tmp_path, **settings)
    second = await turn(llama, tmp_path, next_turn(first), **settings)
    plain = await turn(llama, None, next_turn(first), cache_disk=0)
    assert second.tokens == plain.tokens
    assert second.timings.cache_n == len(PROMPT) + len(first.tokens) - 1
    assert second.timings.draft_n_accepted > 0


async def test_other_requests_continue_while_a_prompt_is_read(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test controls when the read of the file continues."""
    let, really_read = threading.Event(), disk_cache.read

    def read(*arguments: Any) -> Any:
        assert let.wait(30)
        return really_read(*arguments)

    monkeypatch.setattr(disk_cache, "read", read)

    await turn(llama, tmp_path)
    async with running(llama, tmp_path) as engine, engine.use() as loaded:
        stream = ask(loaded, "Hello", n_predict=100, stream=True, sampling=Sampling(temperature=0, ignore_eos=True))
        await stream.until(bool)
        left, stays = ask(loaded, PROMPT), ask(loaded, PROMPT)
        assert (await stream.one()).n_decoded == 100
        assert (left.events, stays.events) == ([], [])
        left.ticket.cancel()
        let.set()
        assert (await stays.one()).timings.cache_n == len(PROMPT) - 1
        let.clear()
        late = ask(loaded, OTHER)
        assert (await late.one()).timings.cache_n == 1, "nothing is known of it: nothing is read"

    async with running(llama, tmp_path) as engine, engine.use() as loaded:
        asked = ask(loaded, PROMPT)
        await ask(loaded, "Hello", id_slot=0).ticket.end_thoughts()
        await engine.close()
        assert (await asked.error()).status == 500
        let.set()


async def test_a_large_prompt_is_not_copied_when_memory_is_short(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "LARGE", 1)
    await turn(llama, tmp_path)
    assert (await turn(llama, tmp_path)).timings.cache_n == len(PROMPT) - 1
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000))
    assert (await turn(llama, tmp_path)).timings.cache_n == 0
    await turn(llama, tmp_path, OTHER)
    assert len(files(tmp_path)) == 1


async def test_a_read_from_a_slow_disk_times_out(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await turn(llama, tmp_path)
    monkeypatch.setattr(disk_cache, "READ_S", -1.0)
    assert (await turn(llama, tmp_path)).timings.cache_n == 0
    assert len(files(tmp_path)) == 1
    monkeypatch.setattr(disk_cache, "SAVE_S", -1.0)
    await turn(llama, tmp_path / "new", OTHER)
    monkeypatch.undo()
    assert (await turn(llama, tmp_path)).timings.cache_n == len(PROMPT) - 1


async def test_a_prompt_is_reused_after_sleep(llama: Path) -> None:
    async with running(llama, None, sleep_idle_seconds=1) as engine:
        async with engine.use() as loaded:
            first = await ask(loaded, PROMPT).one()
        await asleep(engine)
        async with engine.use() as loaded:
            second = await ask(loaded, next_turn(first)).one()
        assert second.timings.cache_n == len(PROMPT) + len(first.tokens) - 1
    assert list(llama.parent.glob("corral-test-*")) == []


async def test_cache_prompt_false_does_not_read_the_disk(llama: Path, tmp_path: Path) -> None:
    await turn(llama, tmp_path)
    async with running(llama, tmp_path) as engine, engine.use() as loaded:
        assert (await ask(loaded, PROMPT, cache_prompt=False).one()).timings.cache_n == 0


@pytest.mark.parametrize(
    "other",
    [
        {"ctx_size": 512},
        {"parallel": 1, "ctx_size": 512},
        {"parallel": 4, "ctx_size": 2048},
        {"cache_type_k": "f32"},
        {"rope_freq_base": 5000.0},
        {"cache_disk": 0},
    ],
    ids=str,
)
async def test_other_settings_do_not_reuse_saved_prompts(llama: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    await turn(llama, tmp_path)
    assert (await turn(llama, tmp_path, **other)).timings.cache_n == 0


async def test_another_model_file_does_not_reuse_saved_prompts(llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(llama, copy)
    await turn(copy, tmp_path)
    assert (await turn(llama, tmp_path)).timings.cache_n == 0
    os.utime(copy, (1, 1))
    assert (await turn(copy, tmp_path)).timings.cache_n == 0


async def test_prompts_of_other_adapters_are_not_reused(models: Path, tmp_path: Path) -> None:
    llama = models / "tiny-llama.gguf"
    lora = (str(models / "tiny-lora.gguf"),)

    await turn(llama, tmp_path)
    assert (await turn(llama, tmp_path, lora=lora)).timings.cache_n == 0
    async with running(llama, tmp_path, lora=lora) as engine, engine.use() as loaded:
        assert (await ask(loaded, PROMPT, adapters=((0, 0.5),)).one()).timings.cache_n == 0, "another scale"
        assert (await ask(loaded, PROMPT, adapters=((0, 1.0),)).one()).timings.cache_n == len(PROMPT) - 1


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def _flip_head(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)


def _lie(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[12:20] = b"\xff" * 8
    path.write_bytes(data)


def _zero(path: Path) -> None:
    os.truncate(path, 0)


def _foreign(path: Path) -> None:
    path.write_bytes(b"GGUF" * 1000)


@pytest.mark.parametrize("damage", [_cut, _flip, _flip_head, _lie, _zero, _foreign], ids=lambda f: f.__name__)
async def test_damaged_files_are_ignored_and_deleted(llama: Path, tmp_path: Path, damage: Any) -> None:
    first = await turn(llama, tmp_path)
    damage(files(tmp_path)[0])
    foreign = tmp_path / "notes.txt"
    foreign.write_text("mine")
    async with running(llama, tmp_path, cache_ram=0) as engine:
        async with engine.use() as loaded:
            again = await ask(loaded, PROMPT).one()
        assert (again.tokens, again.timings.cache_n) == (first.tokens, 0)
        assert files(tmp_path) == []
    assert foreign.exists()
    assert len(files(tmp_path)) == 1, "written again"


async def test_links_are_not_followed(llama: Path, tmp_path: Path) -> None:
    directory = tmp_path / "prompts"
    directory.mkdir()
    await turn(llama, directory)
    path = files(directory)[0]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert (await turn(llama, directory)).timings.cache_n == 0


async def test_a_full_disk_causes_no_failure(llama: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        await turn(llama, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path, "*.*") == []
    assert (await turn(llama, tmp_path)).timings.cache_n == 0


async def test_a_deleted_directory_causes_no_failure(llama: Path, tmp_path: Path) -> None:
    async with running(llama, tmp_path / "gone") as engine, engine.use() as loaded:
        assert (await ask(loaded, PROMPT).one()).n_decoded == 16
    assert not (tmp_path / "gone").exists()
