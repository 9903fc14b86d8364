"""Attacks with files and signals: model files, the presets file, temporary directories, a stopped zygote."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil

from .attack import AT_ONCE, BUSY, REFUSED, SERVED, Attack, encoded
from .stage import DEMO, PRESETS, Answer, Request, Stage

KEYS = 3000
VALUE = 1 << 20
STOP_SOON_S = 10.0
JSON = {"Content-Type": "application/json"}
GATEWAY_ERRORS = frozenset({500, 502, 504})


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def many_keys(path: Path) -> None:
    """Write a sparse file: KEYS texts of 1 MiB each."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, KEYS + 1))
        file.write(text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"))
        for number in range(KEYS):
            file.write(text(b"key.%d" % number) + struct.pack("<IQ", 8, VALUE))
            file.seek(VALUE, os.SEEK_CUR)
        file.truncate(file.tell())


def many_lists(path: Path) -> None:
    """Write a file of many short lists, each of which is kept."""
    with path.open("wb") as file:
        count = 100_000
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, count + 1))
        file.write(text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"))
        for number in range(count):
            file.write(text(b"key.%d" % number) + struct.pack("<IIQ", 9, 4, 64) + b"\1\0\0\0" * 64)


def long_keys(path: Path) -> None:
    """Write a sparse file whose keys and tensors have long names."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 1000, 1000))
        for number in range(2000):
            name = b"%d" % number + b"k" * 60_000
            file.write(text(name) + (struct.pack("<IB", 0, 1) if number < 1000 else struct.pack("<IQIQ", 1, 32, 0, 0)))


def with_file(write: Callable[[Path], None], *names: str) -> Callable[[Stage], None]:
    def prepare(stage: Stage) -> None:
        folder = stage.folder / "hostile"
        folder.mkdir(exist_ok=True)
        for name in names:
            write(folder / name)
        sections = "".join(f"\n[{Path(name).stem}]\nmodel = {folder / name}\n" for name in names)
        stage.more_presets += sections

    return prepare


async def show_hostile(stage: Stage) -> list[Answer]:
    """Ask for the model files' contents and estimates in all ways that read headers."""
    names = [line[1:-1] for line in stage.presets.read_text().splitlines() if line.startswith("[hostile")]
    shows = [("POST", "/api/show", JSON, encoded({"model": name})) for name in names]
    loads = [("POST", "/completion", JSON, encoded({"model": name, "prompt": "Hi"})) for name in names[:1]]
    lists: list[Request] = [("GET", path, {}, b"") for path in ("/models?reload=1", "/api/tags")]
    return await stage.send_all(shows + lists, times=AT_ONCE) + await stage.send_all(loads)


async def reload_of(stage: Stage) -> list[Answer]:
    lists: list[Request] = [("GET", "/models?reload=1", {}, b"")] * AT_ONCE
    waiting = asyncio.create_task(stage.send_all(lists))
    await asyncio.sleep(1)
    health = await stage.send_all([("GET", "/health", {}, b"")])
    return health + await waiting


async def presets_fifo(stage: Stage) -> list[Answer]:
    stage.presets.unlink()
    os.mkfifo(stage.presets)
    return await reload_of(stage)


async def presets_device(stage: Stage) -> list[Answer]:
    stage.presets.unlink()
    stage.presets.symlink_to("/dev/zero")
    return await reload_of(stage)


async def presets_huge(stage: Stage) -> list[Answer]:
    with stage.presets.open("ab") as file:
        file.truncate(300 << 20)
    return await reload_of(stage)


async def presets_lines(stage: Stage) -> list[Answer]:
    stage.presets.write_text(PRESETS.format(demo=DEMO) + "[spare]\ntemp = 1\n" * 200_000)
    return await reload_of(stage)


def stops_soon(stage: Stage) -> str:
    seconds = stage.stop()
    if seconds is None:
        return "SIGTERM did not end the gateway"
    return f"SIGTERM took {seconds:.1f} s" if seconds > STOP_SOON_S else ""


async def zygote_stopped(stage: Stage) -> list[Answer]:
    """Stop the zygote and load a model: the load must end, with a new zygote or with an error."""
    zygote = stage.zygote()
    if zygote is None:
        return [Answer(0, "there is no zygote")]
    zygote.send_signal(signal.SIGSTOP)
    try:
        load = ("POST", "/completion", JSON, encoded({"model": "spare", "prompt": "Hi", "n_predict": 2}))
        return await stage.send_all([load], times=AT_ONCE)
    finally:
        with suppress(psutil.Error):
            zygote.send_signal(signal.SIGCONT)


async def temporary_deleted(stage: Stage) -> list[Answer]:
    """Delete the directory for temporary files, then load a model."""
    shutil.rmtree(stage.temporary, ignore_errors=True)
    load = ("POST", "/completion", JSON, encoded({"model": "spare", "prompt": "Hi", "n_predict": 2}))
    return await stage.send_all([load], times=AT_ONCE)


def left_over(stage: Stage) -> None:
    """Run a gateway on the same directory and kill it, so that it leaves its directories behind."""
    earlier = Stage(stage.folder, stage.program, stage.models, stage.key, more_presets=stage.more_presets)
    with earlier.running("chat", "other"):
        family = earlier.family()
        for process in family:
            process.kill()
        psutil.wait_procs(family, 5)
    stage.left_behind = frozenset(path.name for path in stage.temporary.iterdir())


def is_removed(stage: Stage) -> str:
    left = [path.name for path in stage.temporary.iterdir() if path.name in stage.left_behind]
    return f"directories of the killed gateway are left: {left}" if left else ""


async def nothing(stage: Stage) -> list[Answer]:
    return await stage.send_all([("GET", "/models?reload=1", {}, b"")], times=AT_ONCE)


def strange_names(stage: Stage) -> None:
    """Write models whose file names are not UTF-8, or have line ends and escape sequences."""
    folder = os.fsencode(stage.folder / "models-dir")
    os.makedirs(folder, exist_ok=True)
    for name in (b"not-\xff-utf8.gguf", b"line\nend.gguf", b"esc\x1b[31m.gguf", "ü€🤠.gguf".encode()):
        shutil.copyfile(os.fsencode(DEMO / "demo-story.gguf"), os.path.join(folder, name))
    stage.options = [*stage.options, "--models-dir", os.fsdecode(folder)]


async def address_all(stage: Stage) -> list[Answer]:
    """Use every listed model by the name that the list gives."""
    async with aiohttp.ClientSession(stage.url, headers=stage.headers) as session, session.get("/models") as response:
        listed = [entry["id"] for entry in json.loads(await response.read())["data"]]
    unusual = [name for name in listed if not name.isascii() or not name.isprintable()]
    asked = [("POST", "/completion", JSON, encoded({"model": n, "prompt": "Hi", "n_predict": 1})) for n in unusual]
    return await stage.send_all(asked)


ATTACKS = (
    Attack(
        "gguf-keys",
        f"model files with {KEYS} keys of 1 MiB",
        show_hostile,
        SERVED | REFUSED | GATEWAY_ERRORS | BUSY,
        prepare=with_file(many_keys, "hostile-1.gguf", "hostile-2.gguf"),
    ),
    Attack(
        "gguf-lists",
        "model files with 100,000 lists",
        show_hostile,
        SERVED | REFUSED | GATEWAY_ERRORS | BUSY,
        prepare=with_file(many_lists, "hostile-1.gguf", "hostile-2.gguf"),
    ),
    Attack(
        "gguf-names",
        "model files with keys and tensors that have names of 60 KB",
        show_hostile,
        SERVED | REFUSED | GATEWAY_ERRORS | BUSY,
        prepare=with_file(long_keys, "hostile-1.gguf", "hostile-2.gguf"),
    ),
    Attack("presets-fifo", "the presets file becomes a FIFO", presets_fifo, SERVED | REFUSED | {500}, check=stops_soon),
    Attack(
        "presets-device",
        "the presets file becomes a device",
        presets_device,
        SERVED | REFUSED | {500},
        check=stops_soon,
    ),
    Attack(
        "presets-huge", "the presets file grows to 300 MB", presets_huge, SERVED | REFUSED | {500}, check=stops_soon
    ),
    Attack(
        "presets-lines",
        "the presets file has 200,000 sections",
        presets_lines,
        SERVED | REFUSED | {500},
        check=stops_soon,
    ),
    Attack("zygote-stopped", "the zygote is stopped", zygote_stopped, SERVED | BUSY | {500}),
    Attack("temporary-deleted", "the directory for temporary files is deleted", temporary_deleted, SERVED, quick=True),
    Attack("left-over", "directories that a killed gateway left", nothing, SERVED, prepare=left_over, check=is_removed),
    Attack("file-names", "model files with unusual names", address_all, SERVED, prepare=strange_names),
)
