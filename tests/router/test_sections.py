"""A real router whose presets file has faults: what works, what is refused and why, and reloads and restarts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
from programs import Program, Programs, complete, wait_until

INI = """[*]
ctx-size = 256
parallel = 1

[A]
temp = 0

[GLM-4.5-Air]
jinja = true
load-on-startup = on

[llama3.1:8b]
model = {models}/tiny-llama.gguf

[typo]
model = {models}/tiny-llama.gguf
ctx_sise = 5
alias = t
"""


def add_model(models: Path, folder: Path, name: str) -> None:
    shutil.copy(models / "tiny-llama.gguf", folder / f"{name}.gguf")


def reload(gateway: Program) -> dict[str, dict[str, Any]]:
    """Return each model's status after a reload."""
    answer = gateway.client.get("/models?reload=1")
    assert answer.status_code == 200, answer.text
    return {model["id"]: model["status"] for model in answer.json()["data"]}


def failed(statuses: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, status in statuses.items() if status.get("failed")]


def message(answer: httpx.Response) -> str:
    return str(json.loads(answer.text)["error"]["message"])


def test_sections_with_faults_take_down_no_others(programs: Programs, models: Path, tmp_path: Path) -> None:
    for name in "AB":
        add_model(models, tmp_path, name)
    gateway = programs.gateway("--models-dir", str(tmp_path), presets=INI)
    ini = Path(gateway.argv[gateway.argv.index("--models-preset") + 1])
    statuses = reload(gateway)
    assert list(statuses) == ["A", "B", "GLM-4.5-Air", "llama3.1:8b", "typo"]
    assert failed(statuses) == ["GLM-4.5-Air", "typo"]
    reason = f"cannot be loaded: {ini}:17: unknown key 'ctx_sise' (did you mean 'ctx-size'?)"
    assert statuses["typo"]["error"] == reason
    assert f"model typo {reason}" in gateway.log_text
    for path in ("/completion", "/v1/completions"):
        for name in ("A", "B", "llama3.1:8b"):
            assert complete(gateway, name, path).status_code == 200
        for name in ("typo", "t"):
            refused = complete(gateway, name, path)
            assert (refused.status_code, message(refused)) == (500, f"model 'typo' {reason}")
    refused = gateway.client.post("/models/load", json={"model": "typo"})
    assert (refused.status_code, message(refused)) == (500, f"model 'typo' {reason}")
    tags = [model["model"] for model in gateway.client.get("/api/tags").json()["models"]]
    assert [name for name in tags if name.startswith(("typo", "GLM"))] == []

    (tmp_path / "A.gguf").unlink()
    add_model(models, tmp_path, "C")
    add_model(models, tmp_path, "t")
    ini.write_text(ini.read_text() + "\n[N]\ntemp = 0\n\n[B]\nalias = b\n")
    statuses = reload(gateway)
    assert list(statuses) == ["A", "B", "C", "GLM-4.5-Air", "N", "llama3.1:8b", "t", "typo"]
    assert failed(statuses) == ["A", "GLM-4.5-Air", "N", "typo"]
    assert [complete(gateway, name).status_code for name in ("b", "C", "t", "A")] == [200, 200, 200, 500]

    argv = [*gateway.argv]
    assert gateway.stop() == 0
    restarted = programs.start(argv, address=gateway.address)
    assert failed(reload(restarted)) == ["A", "GLM-4.5-Air", "N", "typo"]
    add_model(models, tmp_path, "N")
    ini.write_text(ini.read_text().replace("ctx_sise", "ctx_size"))
    statuses = reload(restarted)
    assert failed(statuses) == ["A", "GLM-4.5-Air"]
    assert complete(restarted, "N").status_code == 200
    assert complete(restarted, "typo").status_code == 200


def test_with_presets_strict_a_fault_prevents_the_start_and_a_reload(programs: Programs, models: Path) -> None:
    refused = programs.gateway("--presets-strict", presets=INI, wait="nothing")
    assert refused.exit_code() == 1
    assert "presets-0.ini:5: [A] does not say which model it is" in refused.log_text.splitlines()[-1]
    gateway = programs.gateway("--presets-strict", presets="[a]\nmodel = {models}/tiny-llama.gguf\n")
    ini = Path(gateway.argv[-1])
    ini.write_text(ini.read_text() + "[b]\nc = 1\n")
    answer = gateway.client.get("/models?reload=1")
    assert (answer.status_code, message(answer).startswith(f"{ini}:3: [b]")) == (500, True)
    assert list(gateway.models()) == ["a"]


def test_a_model_file_that_appears_later_is_used_without_a_reload(
    programs: Programs, models: Path, tmp_path: Path
) -> None:
    add_model(models, tmp_path, "here")
    ini = "[here]\nmodel = {models}/tiny-llama.gguf\n[late]\nalias = l\nload-on-startup = on\nmodel = FILE\n"
    late = tmp_path / "disk" / "late.gguf"
    gateway = programs.gateway("--models-max", "1", presets=ini.replace("FILE", str(late)))
    presets = Path(gateway.argv[gateway.argv.index("--models-preset") + 1])
    reason = f"cannot be loaded: {presets}:6: model: no such file: {late}"
    assert complete(gateway, "here").status_code == 200
    refused = complete(gateway, "l")
    assert (refused.status_code, message(refused)) == (500, f"model 'late' {reason}")
    assert gateway.status("here") == "loaded", "nothing is evicted for a model that cannot be loaded"
    reload(gateway)
    assert gateway.log_text.count(f"warning: model late {reason}") == 1, "the log says it once"
    late.parent.mkdir()
    shutil.copy(models / "tiny-llama.gguf", late)
    wait_until(lambda: complete(gateway, "l").status_code == 200, "the model")
    late.unlink()
    wait_until(lambda: gateway.log_text.count(f"warning: model late {reason}") == 2, "the second warning")
    assert complete(gateway, "l").status_code == 200, "its worker has the file open"
    assert complete(gateway, "here").status_code == 200
    assert message(complete(gateway, "l")) == f"model 'late' {reason}"
