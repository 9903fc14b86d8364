"""`/rerank` and its aliases: scores how well each document answers a query, in Jina's or TEI's format.

Each pair of query and document becomes one prompt; its score is the model's rank output. A request with the field
`texts` is in TEI's format, one with `documents` in Jina's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, NotSupported
from llama_corral.common.web.application import json_response
from llama_corral.common.web.json_fields import Fields
from llama_corral.presets.abilities import ranks

from ..engine.messages import Embedded, Embedding
from ..engine.runner import Vocab
from .embeddings import compute
from .request.limits import MAX_DOCUMENTS
from .request.reading import PromptReader
from .serving import begin_use, share_of
from .variants import context_of

MAX_RANKED_TOKENS = 800 * MAX_DOCUMENTS
"""The largest number of tokens of all pairs of a request; together they need 300 MB."""
_PLACES = re.compile(r"\{(query|document)\}")


async def rerank(request: web.Request) -> web.StreamResponse:
    worker = context_of(request)
    if not ranks(worker.settings):
        raise NotSupported("This server does not support reranking. Start it with `--reranking`")
    body = await begin_use(request)
    fields = Fields(body)
    query, documents = _query(body), _documents(fields)
    top_n = fields.integer("top_n", default=len(documents), low=0)
    as_tei = "texts" in body
    return_text = as_tei and fields.boolean("return_text", default=False)
    async with worker.engine.use() as loaded:
        template = loaded.info.rerank_template
        reader = PromptReader(loaded.vocab, loaded.n_ctx, max_tokens=MAX_RANKED_TOKENS)
        reader.check_size(len(query))
        prompts = await reader.run(
            len(query) + sum(map(len, documents)),
            lambda: rerank_prompts(query, documents, template, loaded.vocab, reader),
        )
        results = await compute(loaded, [Embedding(tokens) for tokens in prompts], share_of(request))
    ranked = _ranked(results)[:top_n]
    if as_tei:
        texts = documents if return_text else None
        return json_response([_tei_item(index, score, texts) for index, score in ranked])
    n_tokens = sum(result.n_tokens for result in results)
    return json_response(
        {
            "model": fields.string("model", default=worker.name),
            "object": "list",
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            "results": [{"index": index, "relevance_score": score} for index, score in ranked],
        }
    )


def _query(body: dict[str, Any]) -> str:
    if body.get("query") is None:
        raise InvalidRequest('"query" must be provided')
    query = body["query"]
    if not isinstance(query, str):
        raise InvalidRequest('"query" must be a string')
    return query


def _documents(fields: Fields) -> list[str]:
    _, documents = fields.find("documents", "texts")
    if not isinstance(documents, list) or not documents or not all(isinstance(item, str) for item in documents):
        raise InvalidRequest('"documents" must be a non-empty string array')
    return documents


def rerank_prompts(
    query: str, documents: Sequence[str], template: str | None, vocab: Vocab, reader: PromptReader | Vocab
) -> list[list[int]]:
    """Return one prompt for each document.

    Uses the model's rerank template if it has one, else BOS query EOS SEP document EOS, without the special tokens
    that the vocabulary does not add.
    """
    if template is not None:
        filled = (_fill(template, query, document) for document in documents)
        return [reader.tokenize(text, add_special=False, parse_special=True) for text in filled]
    eos = [vocab.eos if vocab.eos >= 0 else vocab.sep] if vocab.add_eos else []
    begin = [vocab.bos] if vocab.add_bos else []
    between = [*eos, vocab.sep] if vocab.add_sep else eos
    head = [*begin, *reader.tokenize(query, False, False), *between]
    return [[*head, *reader.tokenize(document, False, False), *eos] for document in documents]


def _fill(template: str, query: str, document: str) -> str:
    """Fill in both placeholders in one pass, so that placeholder text inside a query is not replaced."""
    values = {"query": query, "document": document}
    return _PLACES.sub(lambda place: values[place[1]], template)


def _ranked(results: Sequence[Embedded]) -> list[tuple[int, float]]:
    """Return (index, score) pairs, best score first; equal scores keep the order of the request."""
    scores = [(index, float(result.vectors[0][0])) for index, result in enumerate(results)]
    return sorted(scores, key=lambda item: -item[1])


def _tei_item(index: int, score: float, texts: Sequence[str] | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"index": index, "score": score}
    return shown if texts is None else {**shown, "text": texts[index]}
