"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from aiohttp import web
from llama_corral.common.web.application import json_response
from llama_corral.common.web.json_fields import Fields, wrong_type

from ..engine.llama.vocab import Vocab
from .answers.long_lists import encoded_list, long_response
from .request.prompts import checked_token, n_characters, tokenize_mixed
from .request.reading import PromptReader
from .serving import WORKER_CONTEXT, read_request

_TOKENS = 1024  # that are encoded at a time


async def tokenize(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    body = await read_request(request)
    fields = Fields(body)
    content = body.get("content", "")
    add_special = fields.boolean("add_special", default=False)
    parse_special = fields.boolean("parse_special", default=True)
    with_pieces = fields.boolean("with_pieces", default=False)
    async with worker.engine.use() as loaded:
        vocab = loaded.vocab
        reader = PromptReader(vocab)
        tokens = await reader.run(
            n_characters(content),
            lambda: tokenize_mixed(content, reader, add_special=add_special, parse_special=parse_special),
        )
        if with_pieces:
            pieces = ({"id": token, "piece": _piece(token, vocab)} for token in tokens)
            return await long_response(2 * len(tokens), lambda: {"tokens": encoded_list(pieces, _TOKENS)})
    return await long_response(len(tokens), lambda: {"tokens": encoded_list(tokens, _TOKENS)})


def _piece(token: int, vocab: Vocab) -> str | list[int]:
    """Return the token's text, or its bytes if they are not valid UTF-8 (only part of a character)."""
    piece = vocab.piece(token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


async def detokenize(request: web.Request) -> web.StreamResponse:
    worker = request.app[WORKER_CONTEXT]
    tokens = (await read_request(request)).get("tokens") or []
    if not isinstance(tokens, list):
        raise wrong_type("tokens", "array", tokens)
    async with worker.engine.use() as loaded:
        vocab = loaded.vocab
        pieces = await PromptReader(vocab).run(
            len(tokens), lambda: vocab.join([checked_token(token, vocab) for token in tokens])
        )
    return json_response({"content": pieces.decode("utf-8", "replace")})
