"""OpenAI's `/v1/embeddings` and llama-server's own `/embedding(s)`, for a worker started with `--embedding`."""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections import deque
from collections.abc import Sequence
from itertools import starmap
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, NotSupported
from llama_corral.common.web.json_fields import Fields

from ..chat.content import ContentReader, join_parts
from ..engine.messages import Embedded, Embedding, Event, Failed, PromptText, Share
from ..engine.runner import LoadedModel
from .answers.long_lists import encoded_list, long_response
from .answers.streaming import Ticket
from .request.limits import MAX_PROMPTS, check_number
from .request.media_prompts import place_media, read_entries
from .request.prompts import Prompt, split_prompts
from .serving import WorkerContext, begin_use, share_of
from .variants import context_of


async def openai_embeddings(request: web.Request) -> web.StreamResponse:
    return await _embed(request, openai=True)


async def native_embeddings(request: web.Request) -> web.StreamResponse:
    return await _embed(request, openai=False)


async def _embed(request: web.Request, *, openai: bool) -> web.StreamResponse:
    worker = context_of(request)
    if not (worker.settings.endpoints.embeddings or worker.settings.endpoints.reranking):
        raise NotSupported("This server does not support embeddings. Start it with `--embeddings`")
    if openai and worker.info.pooling == "none":
        raise InvalidRequest("Pooling type 'none' is not OAI compatible. Please use a different pooling type")
    body = await begin_use(request)
    fields = Fields(body)
    name, wanted = fields.find("input", "content")
    if wanted is None:
        raise InvalidRequest('"input" or "content" must be provided')
    openai = openai and name == "input"  # a client that sends "content" expects llama-server's own format
    as_base64 = _wants_base64(fields)
    normalize = fields.integer("embd_normalize", default=worker.settings.endpoints.embd_normalize, low=-1)
    async with worker.engine.use() as loaded:
        dimensions = _dimensions(fields, worker)
        prompts = await _read_inputs(wanted, worker, loaded)
        requests = [Embedding(prompt.tokens, normalize, prompt.media, dimensions) for prompt in prompts]
        results = await compute(loaded, requests, share_of(request))
    size = n_values(results)
    if not openai:
        return await long_response(size, lambda: encoded_list(starmap(_native_item, enumerate(results))))
    n_tokens = sum(result.n_tokens for result in results)
    shown = {
        "model": fields.string("model", default=worker.name),
        "object": "list",
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }
    items = (_openai_item(index, result, as_base64) for index, result in enumerate(results))
    return await long_response(size, lambda: {**shown, "data": encoded_list(items)})


def _dimensions(fields: Fields, worker: WorkerContext) -> int | None:
    """Return the wanted length of the vectors: many models are trained so that the first values are enough."""
    if fields.find("dimensions")[1] is None:
        return None
    if worker.info.pooling == "rank":
        raise InvalidRequest("Field 'dimensions': this model returns scores, not vectors", "dimensions")
    return fields.integer("dimensions", default=1, low=1, high=worker.info.n_embd_out)


def _wants_base64(fields: Fields) -> bool:
    form = fields.string("encoding_format", default="float")
    if form not in ("float", "base64"):
        raise InvalidRequest("The format to return the embeddings in. Can be either float or base64")
    return form == "base64"


async def _read_inputs(wanted: object, worker: WorkerContext, loaded: LoadedModel) -> list[Prompt]:
    """Read inputs in any form of a prompt, or as `{"content": [parts]}` with the content parts of a chat message."""
    entries = split_prompts(wanted)
    check_number("input", len(entries), MAX_PROMPTS)
    if not entries:
        raise InvalidRequest('"input" must not be empty')
    if [] in entries:
        raise InvalidRequest("Input content cannot be empty")
    prompts = iter(await read_entries([entry for entry in entries if not _is_content(entry)], loaded))
    read = [await _read_content(entry, worker, loaded) if _is_content(entry) else next(prompts) for entry in entries]
    if not all(prompt.tokens for prompt in read):
        raise InvalidRequest("Input content cannot be empty")
    return read


def _is_content(entry: object) -> bool:
    return isinstance(entry, dict) and "content" in entry


async def _read_content(entry: object, worker: WorkerContext, loaded: LoadedModel) -> Prompt:
    assert isinstance(entry, dict)
    if not isinstance(entry["content"], list):
        raise InvalidRequest('"content" must be an array')
    contents = ContentReader(worker.model.chat_defaults.media_marker)
    text = join_parts(contents.read_parts(entry["content"]), "")
    return await place_media([PromptText(text)], contents.media, worker.media, loaded)


async def compute(loaded: LoadedModel, requests: Sequence[Embedding], share: Share) -> list[Embedded]:
    """Compute all, several at a time, so that they share batches. The first failure cancels the others."""
    for request in requests:
        loaded.check(request)
    results: list[Embedded] = []
    waiting: deque[tuple[asyncio.Future[Embedded], Ticket]] = deque()
    try:
        for request in requests:
            if len(waiting) == loaded.window:
                results.append(await waiting[0][0])
                waiting.popleft()
            waiting.append(_submit(loaded, request, share))
        while waiting:
            results.append(await waiting[0][0])
            waiting.popleft()
        return results
    finally:
        for future, ticket in waiting:
            if not future.cancel():
                future.exception()  # mark as retrieved: only the first failure is raised
            ticket.cancel()


def _submit(loaded: LoadedModel, request: Embedding, share: Share) -> tuple[asyncio.Future[Embedded], Ticket]:
    future: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()

    def sink(event: Event) -> None:
        if future.done():
            return
        if isinstance(event, Failed):
            future.set_exception(event.error)
        elif isinstance(event, Embedded):
            future.set_result(event)

    return future, loaded.submit(request, sink, share, checked=True)


def n_values(results: Sequence[Embedded]) -> int:
    """Return the number of values in all vectors."""
    return sum(len(result.vectors) * len(result.vectors[0]) for result in results if result.vectors)


def _native_item(index: int, result: Embedded) -> dict[str, Any]:
    return {"index": index, "embedding": encoded_list(list(map(float, vector)) for vector in result.vectors)}


def _openai_item(index: int, result: Embedded, as_base64: bool) -> dict[str, Any]:
    vector = list(map(float, result.vectors[0]))
    if not as_base64:
        return {"embedding": vector, "index": index, "object": "embedding"}
    raw = array("f", vector).tobytes()  # little endian on all machines that llama.cpp supports
    text = base64.b64encode(raw).decode("ascii")
    return {"embedding": text, "index": index, "object": "embedding", "encoding_format": "base64"}
