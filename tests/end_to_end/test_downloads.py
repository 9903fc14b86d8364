"""Downloads from a local hub and removals over HTTP, with llama-server's and Ollama's API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_corral.common.hub.hub_cache import repo_dir
from local_hub import LocalHub
from ollama import Client, ResponseError
from programs import Program, Programs, wait_until

NAME = "me/repo:Q8_0"


@pytest.fixture
def hub(models: Path) -> Iterator[LocalHub]:
    data = (models / "tiny-llama.gguf").read_bytes()
    with LocalHub({"me/repo": {"m-Q8_0.gguf": data, "m-F16.gguf": data[:-1] + b"x"}}) as running:
        yield running


@pytest.fixture
def gateway(programs: Programs, hub: LocalHub, tmp_path: Path) -> Program:
    env = {"LLAMA_CACHE": str(tmp_path), "MODEL_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    return programs.gateway("--threads", "1", "--ctx-size", "512", env=env)


class Events:
    """Collects the events of `/models/sse` from now on."""

    def __init__(self, gateway: Program) -> None:
        self.told: list[dict[str, Any]] = []
        self._gateway = gateway
        self._listening = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self._listening.wait(10)

    def _listen(self) -> None:
        try:
            with httpx.stream("GET", f"{self._gateway.url}/models/sse", timeout=30, trust_env=False) as response:
                self._listening.set()
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        self.told.append(json.loads(line[6:]))
        except httpx.HTTPError:
            pass

    def wait_for(self, event: str) -> dict[str, Any]:
        return wait_until(lambda: next((told for told in self.told if told["event"] == event), None) or {}, event)


def fetch(gateway: Program, name: str) -> httpx.Response:
    return gateway.client.post("/models", json={"model": name})


def test_download_use_and_removal(gateway: Program, hub: LocalHub, tmp_path: Path) -> None:
    events = Events(gateway)
    assert fetch(gateway, NAME).json() == {"success": True}
    events.wait_for("download_finished")
    progress = events.wait_for("download_progress")["data"]["progress"]
    ((url, amounts),) = progress.items()
    assert url.endswith("m-Q8_0.gguf")
    assert set(amounts) == {"done", "total"}
    entry = gateway.models()[NAME]
    assert (entry["status"]["value"], entry["source"], entry["can_remove"]) == ("unloaded", "cache", True)
    assert fetch(gateway, NAME).status_code == 400
    body = {"model": NAME, "prompt": "x", "n_predict": 1}
    assert gateway.client.post("/completion", json=body).status_code == 200
    response = gateway.client.delete("/models", params={"model": NAME})
    assert response.json() == {"success": True}
    assert NAME not in gateway.models()
    assert not repo_dir(tmp_path, "me/repo").exists()
    assert events.wait_for("model_remove")["model"] == NAME
    assert gateway.client.delete("/models", params={"model": NAME}).status_code == 404


def test_a_cancelled_download_is_resumed(gateway: Program, hub: LocalHub) -> None:
    hub.faults.hold = threading.Event()
    events = Events(gateway)
    fetch(gateway, NAME)
    events.wait_for("model_status")
    wait_until(lambda: gateway.models()[NAME]["status"]["value"] == "downloading", "the entry")
    wait_until(lambda: any("/resolve/" in path for path in hub.paths()), "the request for the file")
    assert gateway.client.post("/models/unload", json={"model": NAME}).json() == {"success": True}
    assert NAME not in gateway.models()
    assert events.wait_for("download_failed")["data"] == {"error": "cancelled"}
    hub.faults.hold.set()
    hub.faults.hold = None
    fetch(gateway, NAME)
    events.wait_for("download_finished")
    assert NAME in gateway.models()


@pytest.mark.parametrize(
    ("name", "why"), [("me/none", "does not exist"), ("me/repo:Q2_K", "no complete GGUF model with the tag Q2_K")]
)
def test_a_missing_repository_or_file_fails_with_the_reason(gateway: Program, name: str, why: str) -> None:
    events = Events(gateway)
    assert fetch(gateway, name).status_code == 200
    assert why in events.wait_for("download_failed")["data"]["error"]
    assert name not in gateway.models()


def test_a_damaged_file_is_not_kept(gateway: Program, hub: LocalHub) -> None:
    hub.faults.damaged = True
    events = Events(gateway)
    fetch(gateway, NAME)
    assert "checksum differs" in events.wait_for("download_failed")["data"]["error"]
    assert NAME not in gateway.models()


def test_downloads_end_with_the_router(gateway: Program, hub: LocalHub) -> None:
    hub.faults.hold = threading.Event()
    fetch(gateway, NAME)
    wait_until(lambda: any("/resolve/" in path for path in hub.paths()), "the request for the file")
    assert gateway.stop() == 0
    hub.faults.hold.set()


def test_pull_and_delete_with_the_client_of_ollama(gateway: Program, hub: LocalHub) -> None:
    with Client(gateway.url, trust_env=False) as client:
        steps = list(client.pull("hf.co/me/repo:q8_0", stream=True))
        assert steps[0].status == "pulling manifest"
        assert steps[-1].status == "success"
        fetched = [step for step in steps if step.total]
        assert fetched[-1].completed == fetched[-1].total
        assert [model.model for model in client.list().models] == [NAME]
        assert client.pull("me/repo:Q8_0").status == "success", "it is there"
        assert client.generate("hf.co/me/repo:Q8_0", "x", options={"num_predict": 1}).done
        assert client.delete("hf.co/me/repo:Q8_0").status == "success"
        assert not client.list().models
        with pytest.raises(ResponseError, match="not found") as caught:
            client.delete("me/repo:Q8_0")
        assert caught.value.status_code == 404
        with pytest.raises(ResponseError, match=r"hf\.co/user/repo"):
            client.pull("llama3")
        with pytest.raises(ResponseError, match="does not exist"):
            list(client.pull("me/none", stream=True))
        with pytest.raises(ResponseError, match="does not exist"):
            client.pull("me/none")


def test_a_pull_ends_with_its_client_and_another_may_join(gateway: Program, hub: LocalHub) -> None:
    hub.faults.hold = threading.Event()
    body = {"model": "me/repo:Q8_0"}
    with httpx.stream("POST", f"{gateway.url}/api/pull", json=body, timeout=30, trust_env=False) as response:
        assert json.loads(next(response.iter_lines()))["status"] == "pulling manifest"
        assert gateway.models()[NAME]["status"]["value"] == "downloading"
    wait_until(lambda: NAME not in gateway.models(), "the end of the download")
    fetch(gateway, NAME)
    with httpx.stream("POST", f"{gateway.url}/api/pull", json=body, timeout=30, trust_env=False) as response:
        lines = response.iter_lines()
        next(lines)
        hub.faults.hold.set()
        assert json.loads(list(lines)[-1])["status"] == "success"
