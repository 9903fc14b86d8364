"""What the programs report about a model with a projector, and how unusable projectors are treated."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

from media_files import png
from programs import Program, Programs, wait_until

PRESETS = """
[*]
ctx-size = 1024
threads = 1
parallel = 2
swa-full = true
[seer]
model = {models}/tiny-gemma3.gguf
mmproj = {models}/mmproj-gemma3.gguf
[hearer]
model = {models}/tiny-llama.gguf
mmproj = {models}/mmproj-audio.gguf
[blinded]
model = {models}/tiny-gemma3.gguf
mmproj = {models}/mmproj-gemma3.gguf
mmproj-auto = false
[broken]
model = {models}/tiny-gemma3.gguf
mmproj = {models}/truncated.gguf
"""


def look(program: Program, *, status: int = 200, **fields: Any) -> Any:
    prompt = {"prompt_string": "What is this: <__media__>", "multimodal_data": [base64.b64encode(png()).decode()]}
    body = {"prompt": prompt, "n_predict": 8, "temperature": 0, "return_tokens": True, **fields}
    response = program.client.post("/completion", json=body)
    assert response.status_code == status, response.text
    return response.json()


def test_a_gateway_lists_the_modalities_of_models(programs: Programs) -> None:
    gateway = programs.gateway(presets=PRESETS, env={"LLAMA_MEDIA_MARKER": "<__media__>"})
    read = {name: entry["architecture"]["input_modalities"] for name, entry in gateway.models().items()}
    assert read == {
        "seer": ["text", "image"],
        "hearer": ["text", "audio"],
        "blinded": ["text"],
        "broken": ["text"],
    }
    assert len(look(gateway, model="seer")["tokens"]) == 8
    assert look(gateway, model="blinded", status=400)["error"]["type"] == "invalid_request_error"
    failure = look(gateway, model="broken", status=500)["error"]["message"]
    assert "failed to load multimodal model" in failure
    props = gateway.client.get("/props", params={"model": "hearer"}).json()
    assert props["modalities"] == {"vision": False, "video": False, "audio": True}


def test_a_directory_of_models_may_hold_projectors(programs: Programs, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "seer"
    folder.mkdir(parents=True)
    shutil.copy(models / "tiny-gemma3.gguf", folder)
    shutil.copy(models / "mmproj-gemma3.gguf", folder / "mmproj-F32.gguf")
    environ = {"LLAMA_MEDIA_MARKER": "<__media__>"}
    gateway = programs.gateway("--models-dir", str(folder.parent), "--ctx-size", "1024", "--threads", "1", env=environ)
    assert gateway.models()["seer"]["architecture"]["input_modalities"] == ["text", "image"]
    assert len(look(gateway, model="seer")["tokens"]) == 8


def test_a_worker_reports_its_modalities_awake_and_asleep(programs: Programs, models: Path, tmp_path: Path) -> None:
    worker = programs.worker(
        "--mmproj", str(models / "mmproj-gemma3.gguf"), "--ctx-size", "1024", "--parallel", "2", "--threads", "1",
        "--sleep-idle-seconds", "1", "--slots", "--slot-save-path", str(tmp_path), "--cache-reuse", "16",
        model="tiny-gemma3.gguf", env={"LLAMA_MEDIA_MARKER": "<__media__>"},
    )  # fmt: skip

    def said() -> tuple[Any, ...]:
        props = worker.client.get("/props").json()
        models = worker.client.get("/models").json()["models"]
        return props["modalities"]["vision"], props["modalities"]["audio"], models[0]["capabilities"]

    assert said() == (True, False, ["completion", "multimodal"])
    first = look(worker, id_slot=0)
    saved = worker.client.post("/slots/0", params={"action": "save"}, json={"filename": "seen"}).json()
    assert saved["n_saved"] == first["tokens_cached"]
    wait_until(lambda: worker.client.get("/props").json()["is_sleeping"], "it to sleep")
    assert said() == (True, False, ["completion", "multimodal"])
    assert look(worker, id_slot=0)["tokens"] == first["tokens"]
    restored = worker.client.post("/slots/1", params={"action": "restore"}, json={"filename": "seen"}).json()
    assert restored["n_restored"] == saved["n_saved"]
