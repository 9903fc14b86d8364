"""Answers with many numbers are made on another thread, in parts, and are the same as made at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer
from engine_tools import running
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.api.answers.long_lists import encoded_list
from llama_corral.worker.api.serving import WorkerContext
from llama_corral.worker.app import build

AT_ONCE = 64 << 10  # bytes; encoding them takes a millisecond
TEXT = "the fox and the dog and the sea " * 40


@given(st.lists(st.one_of(st.integers(-5, 5), st.text(max_size=3), st.lists(st.floats(0, 1)))), st.integers(1, 4))
def test_a_list_in_parts_is_the_same_list(items: list[Any], at_a_time: int) -> None:
    assert json.loads(bytes(encoded_list(items, at_a_time))) == json.loads(json.dumps(items))


def n_copied(value: Any) -> int:
    """Return the number of bytes in a value that are already JSON."""
    if isinstance(value, msgspec.Raw):
        return len(bytes(value))
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(n_copied, inside))


@pytest.mark.parametrize(
    ("path", "body", "pooling"),
    [
        ("/v1/embeddings", {"input": ["a"] * 400}, "mean"),
        ("/v1/embeddings", {"input": ["a"] * 400, "encoding_format": "base64"}, "mean"),
        ("/api/embed", {"model": "m", "input": ["a"] * 400}, "mean"),
        ("/embeddings", {"content": TEXT}, "none"),
        ("/tokenize", {"content": TEXT * 60}, "none"),
        ("/tokenize", {"content": TEXT * 60, "with_pieces": True}, "none"),
    ],
)
async def test_no_long_list_is_encoded_at_once_or_on_the_loop(
    models: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], pooling: str
) -> None:
    settings = {"embeddings": True, "pooling": pooling, "ctx_size": 1024, "threads": 1}
    encode, loop, sizes = msgspec.json.encode, threading.get_ident(), dict[bool, int]()

    def noting(value: Any) -> bytes:
        data = encode(value)
        on_loop = threading.get_ident() == loop
        sizes[on_loop] = max(sizes.get(on_loop, 0), len(data) - n_copied(value))
        return data

    async with running(models / "tiny-llama.gguf", **settings) as engine:
        worker = WorkerContext(Settings.of(model=str(models / "tiny-llama.gguf"), **settings), {})
        async with engine.use() as loaded:
            worker.on_model_loaded(engine, loaded)
        async with TestClient(TestServer(build(worker))) as client:
            monkeypatch.setattr(msgspec.json, "encode", noting)
            response = await client.post(path, json=body)
            data = await response.read()
    assert response.status == 200, data
    assert len(data) > AT_ONCE
    assert sizes[False] < AT_ONCE
    assert sizes.get(True, 0) < 4096
    assert json.loads(data)
