"""Embeddings over HTTP: their forms, lengths and errors, and what their models refuse."""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
import pytest
from llama_corral.worker.engine.llama.embedding import normalize
from programs import Program, post

CHAT = {"messages": [{"role": "user", "content": "Tell me about the sea"}], "max_tokens": 4}


def test_embeddings(embedder: Program) -> None:
    entries = ["hello", [5, 6], {"content": [{"type": "text", "text": "hello"}]}]
    shown = post(embedder, "/v1/embeddings", {"input": entries, "model": "mine"})
    assert shown["model"] == "mine"
    assert [item["index"] for item in shown["data"]] == [0, 1, 2]
    vectors = [item["embedding"] for item in shown["data"]]
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-4)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
    assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-3)
    assert shown["usage"]["prompt_tokens"] == shown["usage"]["total_tokens"] > 0


def test_embeddings_as_base64_and_in_the_native_form(embedder: Program) -> None:
    plain = post(embedder, "/v1/embeddings", {"input": "hello"})["data"][0]["embedding"]
    item = post(embedder, "/v1/embeddings", {"input": "hello", "encoding_format": "base64"})["data"][0]
    raw = base64.b64decode(item["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(plain, abs=1e-6)
    assert item["encoding_format"] == "base64"
    native = post(embedder, "/embeddings", {"content": "hello"})
    assert native == [{"index": 0, "embedding": [pytest.approx(plain, abs=1e-6)]}]
    assert post(embedder, "/v1/embeddings", {"content": "hello"}) == native
    large = post(embedder, "/embedding", {"input": "hello", "embd_normalize": 0})[0]["embedding"][0]
    assert max(map(abs, large)) == pytest.approx(32760, rel=1e-3)


@pytest.mark.parametrize("norm", [-1, 0, 1, 2])
def test_embeddings_may_be_shortened(embedder: Program, norm: int) -> None:
    body = {"input": ["hello", "sea"], "embd_normalize": norm}
    for path, key in (("/v1/embeddings", "input"), ("/embeddings", "content")):
        asked = {**body, key: body["input"]}
        whole, short = post(embedder, path, asked), post(embedder, path, {**asked, "dimensions": 5})
        pairs = zip(whole["data"], short["data"], strict=True) if "data" in whole else zip(whole, short, strict=True)
        for one, other in pairs:
            first, vector = [item["embedding"] for item in (one, other)]
            first, vector = (first[0], vector[0]) if isinstance(first[0], list) else (first, vector)
            expected = normalize(np.array(first[:5], np.float32), norm).tolist()
            assert vector == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_an_embedding_may_be_shortened_to_its_own_length(embedder: Program) -> None:
    whole = post(embedder, "/v1/embeddings", {"input": "hello"})["data"][0]["embedding"]
    same = post(embedder, "/v1/embeddings", {"input": "hello", "dimensions": len(whole)})["data"][0]["embedding"]
    assert same == pytest.approx(whole, abs=1e-6)
    body = {"input": "hello", "dimensions": 3, "encoding_format": "base64"}
    text = post(embedder, "/v1/embeddings", body)["data"][0]["embedding"]
    assert len(base64.b64decode(text)) == 12


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": [[]]},
        {"input": 5},
        {"input": {"content": "x"}},
        {"input": "x", "encoding_format": "xml"},
        {"input": "x", "embd_normalize": -2},
        {"input": "x", "dimensions": 0},
        {"input": "x", "dimensions": -1},
        {"input": "x", "dimensions": "8"},
        {"input": "x", "dimensions": True},
        {"input": "x", "dimensions": 10_000},
    ],
)
def test_wrong_embedding_requests(embedder: Program, body: dict[str, Any]) -> None:
    post(embedder, "/v1/embeddings", body, 400)


def test_an_embedding_input_that_is_too_long(embedder: Program) -> None:
    error = post(embedder, "/v1/embeddings", {"input": ["ok", "word " * 5000]}, 500)["error"]
    assert "too large to process" in error["message"]
    post(embedder, "/v1/embeddings", {"input": "ok"})


def test_an_embedding_model_refuses_chats(embedder: Program) -> None:
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/messages", CHAT),
        ("/v1/responses", {"input": "x"}),
        ("/completion", {"prompt": "x"}),
    ):
        error = post(embedder, path, body, 501)["error"]
        assert "computes embeddings and cannot generate text" in error["message"]
    assert "cannot generate text" in post(embedder, "/api/chat", {**CHAT, "options": {}}, 501)["error"]
    assert embedder.client.get("/v1/models").json()["models"][0]["capabilities"] == ["embedding"]
