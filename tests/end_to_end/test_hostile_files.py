"""Files that are made to exhaust their readers, or that turn into something else, with the real programs."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from programs import Program, Programs, complete, free_port, post, wait_until

MIB = 1 << 20
PRESETS = """
[*]
threads = 1
ctx-size = 512

[good]
model = {models}/tiny-llama.gguf

[huge-header]
model = {hostile}/huge-header.gguf

[many-layers]
model = {hostile}/many-layers.gguf
"""


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


_ARCHITECTURE = _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama")


def _write_huge_header(path: Path) -> None:
    """3000 texts of one MiB, which take no space on disk."""
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 3001) + _ARCHITECTURE)
        for number in range(3000):
            file.write(_text(b"text.%d" % number) + struct.pack("<IQ", 8, MIB))
            file.seek(MIB, os.SEEK_CUR)
        file.truncate(file.tell() + 64)


def _write_many_layers(path: Path) -> None:
    layers = _text(b"llama.block_count") + struct.pack("<II", 4, 2**32 - 1)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + _ARCHITECTURE + layers + bytes(64))


@pytest.fixture(scope="module")
def gateway(module_programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Program:
    hostile = tmp_path_factory.mktemp("hostile")
    _write_huge_header(hostile / "huge-header.gguf")
    _write_many_layers(hostile / "many-layers.gguf")
    return module_programs.gateway(presets=PRESETS.replace("{hostile}", str(hostile)))


def test_a_huge_header_is_described_without_reading_it(gateway: Program) -> None:
    before = psutil.Process(gateway.pid).memory_info().rss
    for _ in range(5):
        shown = gateway.client.post("/api/show", json={"model": "huge-header", "verbose": True})
        assert shown.status_code == 200
        assert len(shown.content) < MIB
    gateway.client.get("/api/tags").raise_for_status()
    assert psutil.Process(gateway.pid).memory_info().rss - before < 64 * MIB
    assert "huge-header.gguf: its header has more than 128 MiB" in gateway.log_text


def test_a_huge_header_is_not_loaded(gateway: Program) -> None:
    refused = complete(gateway, "huge-header")
    assert refused.status_code >= 400
    assert "its header has more than 128 MiB" in refused.text
    assert gateway.models()["huge-header"]["status"]["failed"] is True
    assert complete(gateway, "good").status_code == 200


def test_a_claim_of_four_billion_layers_fails_at_once(gateway: Program) -> None:
    assert complete(gateway, "many-layers").status_code >= 400
    assert complete(gateway, "good").status_code == 200


# -- sources that turn into something else ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_a_presets_file_that_is_no_file_any_more(programs: Programs, kind: str) -> None:
    """The reload fails with a reason, the old presets serve on, and the router ends when it is asked to."""
    gateway = programs.gateway(presets=PRESETS.replace("{hostile}", "/none"))
    (path,) = gateway_files(programs)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(300 * MIB)
    answer = gateway.client.get("/models", params={"reload": "1"}, timeout=20)
    why = "this file has more than 8 MiB" if kind == "large" else "this is not a regular file"
    assert answer.status_code == 500
    assert why in answer.json()["error"]["message"]
    assert complete(gateway, "good").status_code == 200
    assert gateway.stop() == 0


def gateway_files(programs: Programs) -> list[Path]:
    return list(programs.directory.glob("presets-*.ini"))


HANGING = """
import sys, threading
from llama_corral.presets.sources import PresetReader
from llama_corral.router import cli

read, is_first = PresetReader.__call__, True

def hang(self):
    global is_first
    if not is_first:
        print("hanging", file=sys.stderr, flush=True)
        threading.Event().wait()
    is_first = False
    return read(self)

PresetReader.__call__ = hang
sys.exit(cli.main())
"""


def test_a_source_that_hangs_does_not_delay_the_end(programs: Programs) -> None:
    """As on a network file system whose server is away: the thread that reads cannot be ended."""
    presets = programs.directory / "presets.ini"
    presets.write_text(PRESETS.replace("{models}", str(programs.models)).replace("{hostile}", "/none"))
    port = str(free_port())
    argv = [sys.executable, "-c", HANGING, "--host", "127.0.0.1", "--port", port, "--models-preset", str(presets)]
    gateway = programs.start(argv, address=port)
    presets.write_text(presets.read_text() + "\n[another]\nmodel = /none.gguf\n")
    wait_until(lambda: "hanging" in gateway.log_text, "the reading of the sources hangs")
    assert complete(gateway, "good").status_code == 200
    assert gateway.stop() == 0


# -- names and directories -------------------------------------------------------------------------------------------


def test_a_name_that_is_not_utf8_is_neither_listed_nor_used(programs: Programs) -> None:
    """Its directory may have such a name, because no request names it."""
    folder = os.fsencode(programs.directory) + b"/models-\xff"
    os.mkdir(folder)
    model = os.fsencode(programs.models / "tiny-llama.gguf")
    os.mkdir(folder + b"/odd\xfe")
    for name in (b"good.gguf", b"odd\xff.gguf", b"odd\xfe/a.gguf"):
        os.symlink(model, folder + b"/" + name)
    gateway = programs.gateway("--models-dir", os.fsdecode(folder), env={"ODD": "\udcff"})
    assert list(gateway.models()) == ["good"]
    assert [model["name"] for model in gateway.client.get("/api/tags").json()["models"]] == ["good:latest"]
    assert complete(gateway, "good").status_code == 200
    assert r"odd\xff.gguf: ignored: its name is not UTF-8 text" in gateway.log_text
    os.symlink(model, folder + b"/later.gguf")
    wait_until(lambda: "later" in gateway.models(), "the directory is still watched")


def test_a_deleted_directory_for_temporary_files_is_made_again(programs: Programs) -> None:
    tmp = programs.directory / "tmp"
    tmp.mkdir()
    gateway = programs.gateway(
        "--models-max", "1", presets=PRESETS.replace("{hostile}", "/none"), env={"TMPDIR": str(tmp)}
    )
    assert complete(gateway, "good").status_code == 200
    names = sorted(path.name for path in tmp.iterdir())
    shutil.rmtree(tmp)
    wait_until(lambda: tmp.exists() and len(list(tmp.iterdir())) >= 2, "the directories of the workers are there again")
    assert {path.name for path in tmp.iterdir()} <= set(names)
    post(gateway, "/models/unload", {"model": "good"})
    gateway.wait_for_status("good", "unloaded")
    assert complete(gateway, "good").status_code == 200
    assert sorted(path.name for path in tmp.iterdir()) == names
    assert gateway.stop() == 0
    assert list(tmp.iterdir()) == []


def test_a_worker_whose_socket_was_deleted_is_replaced(programs: Programs) -> None:
    """Its open connections work, but it cannot be reached by others."""
    tmp = programs.directory / "tmp"
    tmp.mkdir()
    gateway = programs.gateway(presets=PRESETS.replace("{hostile}", "/none"), env={"TMPDIR": str(tmp)})
    assert complete(gateway, "good").status_code == 200
    shutil.rmtree(tmp)

    def ask_at_once() -> set[int]:
        with ThreadPoolExecutor(4) as threads:
            return {answer.status_code for answer in threads.map(lambda _: complete(gateway, "good"), range(4))}

    wait_until(lambda: 503 in ask_at_once(), "a request that needs another connection")
    wait_until(lambda: ask_at_once() == {200}, "another worker")


def test_what_a_killed_router_left_behind_is_deleted_by_the_next_one(programs: Programs) -> None:
    tmp = programs.directory / "tmp"
    tmp.mkdir()
    presets = PRESETS.replace("{hostile}", "/none")
    killed, living = (programs.gateway(presets=presets, env={"TMPDIR": str(tmp)}) for _ in range(2))
    for gateway in (killed, living):
        assert complete(gateway, "good").status_code == 200
    before = {path.name for path in tmp.iterdir()}
    assert {name.rpartition("-")[0] for name in before} == {"corral-prompts", "corral-responses", "corral-sockets"}
    assert len(before) == 6
    killed.stop(signal.SIGKILL)
    third = programs.gateway(presets=presets, env={"TMPDIR": str(tmp)})
    assert complete(third, "good").status_code == 200
    after = {path.name for path in tmp.iterdir()}
    assert (len(after), len(after & before)) == (6, 3)
    assert complete(living, "good").status_code == 200
    for gateway in (living, third):
        assert gateway.stop() == 0
    assert list(tmp.iterdir()) == []
