"""Known failures of similar programs, tested with the real programs. SCENARIOS.md lists them."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from programs import Program, Programs, wait_until

TINY = """
[*]
threads = 1
ctx-size = 1024
"""
ENDLESS = {"prompt": "Once", "n_predict": -1, "temperature": 0, "stream": True}


def tokens(gateway: Program, model: str) -> httpx.Response:
    return gateway.client.post("/tokenize", json={"model": model, "content": "a b"})


@contextmanager
def endless_stream(gateway: Program) -> Iterator[Iterator[str]]:
    with gateway.client.stream("POST", "/completion", json={**ENDLESS, "model": "endless"}) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines).startswith("data: ")
        yield lines


def is_last_word(line: str) -> bool:
    return line.startswith(("error: ", 'data: {"error"', '{"error"')) or '"stop":true' in line


LONG = TINY + "parallel = 1\n[endless]\nmodel = {models}/tiny-llama-long.gguf\nctx-size = 65536\n"


def test_an_unload_ends_streams_with_an_error_event(programs: Programs) -> None:
    gateway = programs.gateway(presets=LONG)
    with endless_stream(gateway) as lines:
        assert gateway.client.post("/models/unload", json={"model": "endless"}).status_code == 200
        last = next(line for line in lines if is_last_word(line))
    assert "the model was unloaded: unload was requested" in last
    gateway.wait_for_status("endless", "unloaded")
    assert tokens(gateway, "endless").status_code == 200


def test_a_shutdown_ends_fifty_streams(programs: Programs) -> None:
    """All streams end with an error event and the exit code is 0; a second signal ends them immediately."""
    gateway = programs.gateway(presets=LONG.replace("parallel = 1", "parallel = 4"))
    assert tokens(gateway, "endless").status_code == 200
    begun = threading.Semaphore(0)

    def stream(number: int) -> list[str]:
        seen = []
        body = {**ENDLESS, "model": "endless", "return_progress": True}
        with (
            httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as client,
            client.stream("POST", "/completion", json=body) as answer,
        ):
            begun.release()
            for line in answer.iter_lines():
                seen.append(line)
        return [line for line in seen if line]

    with ThreadPoolExecutor(50) as pool:
        streams = [pool.submit(stream, number) for number in range(50)]
        for _ in range(4):
            begun.acquire(timeout=30)
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "shut" in gateway.log_text or "stop" in gateway.log_text, "the router to have noticed")
        assert gateway.stop(signal.SIGTERM) == 0
        for done in streams:
            error = done.exception()
            if error is None:
                assert not done.result() or is_last_word(done.result()[-1]), done.result()[-1]
            else:
                assert isinstance(error, httpx.TransportError)
    wait_until(lambda: not gateway.family(), "everything to end")


def test_the_router_maps_no_engine_and_opens_no_device(programs: Programs) -> None:
    gateway = programs.gateway(presets=TINY + "[tiny]\nmodel = {models}/tiny-llama.gguf\n")
    assert tokens(gateway, "tiny").status_code == 200
    process = psutil.Process(gateway.pid)
    mapped = [entry.path for entry in process.memory_maps()]
    assert not [path for path in mapped if any(part in path for part in ("libllama", "libggml", "libcuda", ".gguf"))]
    fds = [Path(f"/proc/{gateway.pid}/fd/{name.name}") for name in Path(f"/proc/{gateway.pid}/fd").iterdir()]
    assert not [fd for fd in fds if fd.is_symlink() and "/dev/nvidia" in str(fd.readlink())]


def test_a_split_model_without_one_of_its_parts(programs: Programs, models: Path, tmp_path: Path) -> None:
    parts = sorted((models / "sharded").glob("*.gguf"))
    for part in parts[:-1]:
        shutil.copy(part, tmp_path)
    gateway = programs.gateway(presets=TINY + f"[split]\nmodel = {tmp_path / parts[0].name}\n")
    answer = tokens(gateway, "split")
    assert answer.status_code == 500
    assert parts[-1].name in answer.json()["error"]["message"]
    shutil.copy(parts[-1], tmp_path)
    assert tokens(gateway, "split").status_code == 200


def test_a_mapped_model_file_is_replaced_and_truncated(programs: Programs, models: Path, tmp_path: Path) -> None:
    """Replacing the file has no effect. Truncating it ends the worker, and nothing else."""
    file = tmp_path / "model.gguf"
    shutil.copy(models / "tiny-llama.gguf", file)
    gateway = programs.gateway(presets=TINY + f"[cut]\nmodel = {file}\n[other]\nmodel = {{models}}/tiny-llama-b.gguf\n")
    body = {"model": "cut", "prompt": "Once upon", "n_predict": 8, "temperature": 0, "cache_prompt": False}
    before = gateway.client.post("/completion", json=body).json()["content"]
    shutil.copy(models / "tiny-llama-b.gguf", tmp_path / "new.gguf")
    (tmp_path / "new.gguf").replace(file)
    assert gateway.client.post("/completion", json=body).json()["content"] == before
    assert gateway.client.post("/models/unload", json={"model": "cut"}).status_code == 200
    gateway.wait_for_status("cut", "unloaded")
    assert gateway.client.post("/completion", json=body).json()["content"] != before
    with file.open("r+b") as opened:
        opened.truncate(4096)
    answer = gateway.client.post("/completion", json=body)
    if answer.status_code != 200:  # pages that were read before may still be in memory
        assert answer.status_code in (502, 503)
        assert answer.json()["error"]["message"]
    assert tokens(gateway, "other").status_code == 200
    gateway.client.post("/models/unload", json={"model": "cut"})
    gateway.wait_for_status("cut", "unloaded")
    answer = gateway.client.post("/completion", json=body)
    assert answer.status_code in (500, 503)
    assert "cut" in answer.json()["error"]["message"]


def test_a_models_directory_is_only_read(programs: Programs, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(models / "tiny-llama.gguf", folder)
    folder.chmod(0o555)
    before = folder.stat().st_mtime_ns
    gateway = programs.gateway("--models-dir", str(folder), "--ctx-size", "512")
    assert tokens(gateway, "tiny-llama").status_code == 200
    assert (folder.stat().st_mtime_ns, len(list(folder.iterdir()))) == (before, 1)
    folder.chmod(0o755)


@pytest.mark.parametrize("way", ["renamed over it", "a link that is swapped", "removed and written again", "two edits"])
def test_presets_are_edited_in_every_way(programs: Programs, tmp_path: Path, models: Path, way: str) -> None:
    """The final content of the file is used, and a loaded model whose preset is unchanged is not loaded again."""
    file = tmp_path / "presets.ini"
    kept = f"[kept]\nmodel = {models / 'tiny-llama.gguf'}\nctx-size = 512\n"
    new = kept + f"[new]\nmodel = {models / 'tiny-llama-b.gguf'}\nctx-size = 512\n"
    if way == "a link that is swapped":
        (tmp_path / "v1").mkdir()
        (tmp_path / "v1" / file.name).write_text(kept)
        (tmp_path / "..data").symlink_to("v1")
        file.symlink_to(f"..data/{file.name}")
    else:
        file.write_text(kept)
    gateway = programs.gateway("--models-preset", str(file))
    assert tokens(gateway, "kept").status_code == 200
    worker = gateway.models()["kept"]["status"]["args"]
    edit(way, file, kept, new)
    wait_until(lambda: "new" in gateway.models(), "the new model to be listed")
    assert tokens(gateway, "new").status_code == 200
    shown = gateway.models()
    assert set(shown) == {"kept", "new"}
    assert shown["kept"]["status"]["value"] == "loaded"
    assert shown["kept"]["status"]["args"] == worker, "the same one, on its own socket"


def edit(way: str, file: Path, kept: str, new: str) -> None:
    other = file.with_name("other")
    if way == "renamed over it":
        other.write_text(new)
        other.replace(file)
    elif way == "a link that is swapped":
        (file.parent / "v2").mkdir()
        (file.parent / "v2" / file.name).write_text(new)
        (file.parent / "..tmp").symlink_to("v2")
        (file.parent / "..tmp").replace(file.parent / "..data")
    elif way == "removed and written again":
        file.unlink()
        file.write_text(new)
    else:
        file.write_text(new[: len(new) // 2] + "\n[half")  # partly written
        file.write_text(new)


def test_polling_neither_loads_nor_wakes_nor_keeps_a_model(programs: Programs) -> None:
    gateway = programs.gateway(presets=TINY + "[tiny]\nmodel = {models}/tiny-llama.gguf\nttl = 1\n")
    paths = ("/models", "/v1/models", "/health", "/props", "/api/tags", "/api/ps", "/models/tiny", "/")

    def poll() -> str:
        for path in paths:
            assert gateway.client.get(path).status_code == 200
        return gateway.status("tiny")

    assert poll() == "unloaded"
    assert tokens(gateway, "tiny").status_code == 200
    with gateway.client.stream("GET", "/models/sse") as events:
        for line in events.iter_lines():
            if line.startswith("data: ") and json.loads(line[6:])["data"].get("status") == "unloaded":
                break
    assert poll() == "unloaded"
