"""Reranking: prompts from query and document, both dialects, order, limits, and models that refuse it."""

from __future__ import annotations

from typing import Any

import pytest
from llama_corral.worker.api.rerank import rerank_prompts
from programs import Program, Programs, post

DOCUMENTS = ["the lazy dog", "a story about the sea", "count from 1 to 9", "the quick brown fox"]
ASK = {"query": "the fox", "documents": DOCUMENTS}


class Letters:
    """A vocabulary with one token per letter, and special tokens with higher ids."""

    bos, eos, sep = 1000, 1001, 1002
    add_bos = add_eos = add_sep = True

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        assert not add_special
        return [*([-1] if parse_special else []), *map(ord, text)]


def text(tokens: list[int]) -> str:
    names = {1000: "<bos>", 1001: "<eos>", 1002: "<sep>", -1: "<parsed>"}
    return "".join(names.get(token) or chr(token) for token in tokens)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "<bos>q<eos><sep>d<eos>"),
        ({"add_eos": False}, "<bos>q<sep>d"),
        ({"add_sep": False, "add_bos": False}, "q<eos>d<eos>"),
        ({"eos": -1}, "<bos>q<sep><sep>d<sep>"),
    ],
)
def test_a_prompt_has_the_tokens_that_the_vocabulary_adds(changes: dict[str, Any], expected: str) -> None:
    vocab = type("Vocab", (Letters,), changes)()
    assert [text(prompt) for prompt in rerank_prompts("q", ["d"], None, vocab, vocab)] == [expected]


def test_a_template_is_filled_once() -> None:
    prompts = rerank_prompts("{document}", ["{query}", "b"], "{query}: {document}!", Letters(), Letters())  # type: ignore[arg-type]
    assert [text(prompt) for prompt in prompts] == ["<parsed>{document}: {query}!", "<parsed>{document}: b!"]


@pytest.fixture(scope="module")
def reranker(module_programs: Programs) -> Program:
    return module_programs.worker("--reranking", "--alias", "ranker", "--threads", "1", model="tiny-rerank.gguf")


def ask(program: Program, body: Any, path: str = "/rerank", status: int = 200) -> Any:
    return post(program, path, body, status)


@pytest.mark.parametrize("path", ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"])
def test_jina(reranker: Program, path: str) -> None:
    shown = ask(reranker, ASK, path)
    assert (shown["model"], shown["object"]) == ("ranker", "list")
    assert shown["usage"]["prompt_tokens"] == shown["usage"]["total_tokens"] > 4
    scores = [item["relevance_score"] for item in shown["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(item["index"] for item in shown["results"]) == [0, 1, 2, 3]
    assert ask(reranker, {**ASK, "model": "mine"})["model"] == "mine"


def test_tei(reranker: Program) -> None:
    jina = [(item["index"], item["relevance_score"]) for item in ask(reranker, ASK)["results"]]
    body = {"query": ASK["query"], "texts": DOCUMENTS}
    assert ask(reranker, body) == [{"index": index, "score": pytest.approx(score)} for index, score in jina]
    for item in ask(reranker, {**body, "return_text": True, "top_n": 2}):
        assert item["text"] == DOCUMENTS[item["index"]]


def test_scores_do_not_depend_on_other_documents(reranker: Program) -> None:
    together = {item["index"]: item["relevance_score"] for item in ask(reranker, ASK)["results"]}
    for index, document in enumerate(DOCUMENTS):
        alone = ask(reranker, {**ASK, "documents": [document]})["results"][0]["relevance_score"]
        assert alone == pytest.approx(together[index], abs=1e-4)


@pytest.mark.parametrize(("top_n", "n"), [(2, 2), (0, 0), (99, 4)])
def test_top_n(reranker: Program, top_n: int, n: int) -> None:
    best = ask(reranker, ASK)["results"]
    shown = ask(reranker, {**ASK, "top_n": top_n})["results"]
    assert [item["index"] for item in shown] == [item["index"] for item in best[:n]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, '"query" must be provided'),
        ({"query": 5}, '"query" must be a string'),
        ({"documents": []}, '"documents" must be a non-empty string array'),
        ({"documents": None}, '"documents" must be a non-empty string array'),
        ({"documents": [1]}, '"documents" must be a non-empty string array'),
        ({"top_n": -1}, "Field 'top_n'"),
    ],
)
def test_wrong_requests(reranker: Program, change: dict[str, Any], message: str) -> None:
    assert message in ask(reranker, {**ASK, **change}, status=400)["error"]["message"]


def test_a_document_too_long_for_a_batch(programs: Programs) -> None:
    program = programs.worker("--reranking", "--ubatch-size", "16", model="tiny-rerank.gguf")
    error = ask(program, {**ASK, "documents": ["the sea", "the sea " * 40]}, status=500)["error"]
    assert "is too large to process. increase the physical batch size (current batch size: 16)" in error["message"]


def test_a_models_rerank_template_is_used(programs: Programs) -> None:
    program = programs.worker("--embedding", "--pooling", "rank", model="tiny-rerank-template.gguf")
    shown = ask(program, {**ASK, "documents": ["the sea"]})
    text = "[CLS]the sea answers the fox[SEP]"
    tokens = program.client.post("/tokenize", json={"content": text, "add_special": False}).json()["tokens"]
    assert shown["usage"]["prompt_tokens"] == len(tokens)
    [score] = program.client.post("/embedding", json={"content": tokens}).json()[0]["embedding"]
    assert score == [pytest.approx(shown["results"][0]["relevance_score"])]


def test_other_models_refuse_reranking(worker: Program, embedder: Program) -> None:
    for program in (worker, embedder):
        error = ask(program, ASK, status=501)["error"]
        assert error["message"] == "This server does not support reranking. Start it with `--reranking`"


def test_through_the_router(programs: Programs) -> None:
    presets = "[ranker]\nmodel = {models}/tiny-rerank.gguf\nreranking = on\nthreads = 1\n"
    gateway = programs.gateway(presets=presets)
    assert len(ask(gateway, {**ASK, "model": "ranker"}, "/v1/rerank")["results"]) == 4
