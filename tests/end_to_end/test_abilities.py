"""Everything that lists or shows a model agrees on what it can do, before and after its load, and it can do that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_hub import LocalHub
from programs import Program, Programs, complete

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ tools }}{% endif %}<think>"
PRESETS = """
[*]
ctx-size = 512
threads = 1
parallel = 1
[both]
model = {models}/tiny-llama.gguf
embeddings = 1
pooling = mean
[one-vector-per-token]
model = {models}/tiny-llama.gguf
embeddings = on
[embedder]
model = {models}/tiny-bert.gguf
embeddings = true
[ranker]
model = {models}/tiny-rerank.gguf
reranking = true
[templated]
model = {models}/tiny-llama.gguf
chat-template-file = {folder}/tools.jinja
[variant]
base = templated
temp = 0
[builtin]
model = {models}/tiny-llama.gguf
chat-template-file = {folder}/tools.jinja
jinja = false
[replaced]
model = {models}/tiny-llama.gguf
chat-template = {% for m in messages %}{{ m.content }}{% endfor %}
[seer]
model = {models}/tiny-gemma3.gguf
mmproj-url = {hub}/plain/mmproj.gguf
[blind]
model = {models}/tiny-gemma3.gguf
mmproj-url = {hub}/plain/mmproj.gguf
mmproj-auto = false
"""
EXPECTED = {
    "both": {"completion", "embedding"},
    "one-vector-per-token": {"completion"},
    "embedder": {"embedding"},
    "ranker": set(),
    "templated": {"completion", "tools", "thinking"},
    "variant": {"completion", "tools", "thinking"},
    "builtin": {"completion"},
    "replaced": {"completion"},
    "seer": {"completion", "vision"},
    "blind": {"completion"},
}


@pytest.fixture
def gateway(programs: Programs, models: Path, tmp_path: Path) -> Any:
    (tmp_path / "tools.jinja").write_text(TEMPLATE)
    with LocalHub({}, {"mmproj.gguf": (models / "mmproj-gemma3.gguf").read_bytes()}) as hub:
        text = PRESETS.replace("{folder}", str(tmp_path)).replace("{hub}", hub.url)
        yield programs.gateway(presets=text, env={"LLAMA_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"})


def shown(gateway: Program, model: str) -> set[str]:
    """Return what is shown, without the ability to fill in, which the tiny model has with any options."""
    found = gateway.client.post("/api/show", json={"model": model}).json()["capabilities"]
    return set(found) - {"insert"}


def test_lists_and_answers_agree_whatever_a_preset_sets(gateway: Program) -> None:
    downloaded = {"vision"}  # nothing is known of a projector that is not here yet
    for name, expected in EXPECTED.items():
        assert shown(gateway, name) == expected - downloaded, name
    for name, expected in EXPECTED.items():
        can_chat = complete(gateway, name, n_predict=1).status_code == 200
        vectors = gateway.client.post("/api/embed", json={"model": name, "input": "x"}).status_code == 200
        assert (can_chat, vectors) == ("completion" in expected, "embedding" in expected), name
        props = gateway.client.get("/props", params={"model": name}).json()
        entry = gateway.models()[name]
        assert props["modalities"]["vision"] == ("vision" in expected), name
        assert ("image" in entry["architecture"]["input_modalities"]) == props["modalities"]["vision"], name
        if expected:
            assert props["chat_template_caps"]["supports_tools"] == ("tools" in expected), name
        assert shown(gateway, name) == expected, name
        assert gateway.client.post("/models/unload", json={"model": name}).status_code == 200
        gateway.wait_for_status(entry["id"], "unloaded")
        assert gateway.models()[name]["architecture"] == entry["architecture"], "its projector is still here"


def test_a_worker_alone_shows_the_same(programs: Programs) -> None:
    worker = programs.worker("--embeddings", "--pooling", "mean", "-t", "1", model="tiny-llama.gguf")
    (entry,) = worker.client.get("/v1/models").json()["models"]
    assert entry["capabilities"] == ["completion", "embedding"]
    assert shown(worker, entry["name"]) == {"completion", "embedding"}
    assert worker.client.get("/v1/models").json()["data"][0]["architecture"]["input_modalities"] == ["text"]
