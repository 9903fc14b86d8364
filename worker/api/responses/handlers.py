"""`/v1/responses`: answers an input, with the conversation of the previous response if the request names one.

Request and answer are stored unless the request has `store: false`. The text is generated as for a chat completion.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.application import json_response
from llama_corral.common.web.stored_responses import RESPONSES

from ..answers.dialect import AnswerInfo
from ..answers.results import random_id
from ..completions import answer_chat, prompt_tokens
from ..serving import begin_use, read_request
from ..variants import context_of
from .dialect import RESPONSE_PREFIX, OpenAIResponses
from .items import ITEM_PREFIXES, Item
from .request import ResponseForm, ResponsesRequest, read_responses

log = logging.getLogger("corral.worker")

ID_LENGTH = 32
ANSWERS_SHARE = 4
"""With `truncation: auto`, 1/4 of the context is reserved for the answer, or less if its limit is lower."""


class PreviousNotFound(InvalidRequest):
    def __init__(self, id: str) -> None:
        super().__init__(f"Previous response with id '{id}' not found.", "previous_response_id")

    def body(self) -> dict[str, Any]:
        return {**super().body(), "code": "previous_response_not_found"}


async def create(request: web.Request) -> web.StreamResponse:
    body, form, items = await _read(request)
    dialects: list[OpenAIResponses] = []

    def dialect(answer: AnswerInfo) -> OpenAIResponses:
        dialects.append(OpenAIResponses(answer, form))
        return dialects[0]

    async def keep() -> None:
        assert items is not None
        await asyncio.to_thread(_keep, request, items, dialects[0].response)

    id = random_id(RESPONSE_PREFIX)
    return await answer_chat(request, body, dialect, id, None if items is None else keep)


async def _read(request: web.Request) -> tuple[dict[str, Any], ResponseForm, list[Item] | None]:
    """Return the chat request, the form of the Response, and the items if they must be stored, else None."""
    asked = read_responses(await begin_use(request))
    items = await _all_items(request, asked)
    body = asked.chat_body(items)
    if asked.truncates:
        body["messages"] = await _without_oldest_turns(request, body)
    return body, asked.form, items if asked.stores else None


async def count_tokens(request: web.Request) -> web.StreamResponse:
    asked = read_responses(await read_request(request))
    body = asked.chat_body(await _all_items(request, asked))
    return json_response({"input_tokens": await prompt_tokens(request, body), "object": "response.input_tokens"})


# -- previous items --------------------------------------------------------------------------------------------------


async def _all_items(request: web.Request, asked: ResponsesRequest) -> list[Item]:
    before: list[Item] = []
    if asked.previous:
        record = await asyncio.to_thread(request.app[RESPONSES].get, asked.previous)
        if record is None:
            raise PreviousNotFound(asked.previous)
        before = _items(record)
    return [*before, *[await _resolved(request, item, before) for item in asked.items]]


def _items(record: dict[str, Any]) -> list[Item]:
    return [*record["input"], *record["response"]["output"]]


async def _resolved(request: web.Request, item: Item, before: list[Item]) -> Item:
    """Return the item that a reference names. An item's id contains the id of its response."""
    if item["type"] != "item_reference":
        return item
    id = item["id"]
    response = RESPONSE_PREFIX + id.partition("_")[2][:ID_LENGTH]
    record = await asyncio.to_thread(request.app[RESPONSES].get, response)
    known = before if record is None else _items(record)
    found = next((other for other in known if other.get("id") == id), None)
    if found is None:
        raise InvalidRequest(f"Item with id '{id}' not found.")
    return found


def _keep(request: web.Request, items: list[Item], response: dict[str, Any]) -> None:
    token = response["id"].removeprefix(RESPONSE_PREFIX)
    named = [
        {**item, "id": item.get("id") or f"{ITEM_PREFIXES.get(item['type'], 'item')}_{token}i{at}"}
        for at, item in enumerate(items)
    ]
    try:
        request.app[RESPONSES].put(response["id"], {"response": response, "input": named})
    except OSError as error:
        log.warning("cannot store a response: %s", error)


# -- truncation ------------------------------------------------------------------------------------------------------


async def _without_oldest_turns(request: web.Request, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages without the oldest turns; remove as few turns as necessary.

    System and developer messages at the start are kept.
    """
    messages: list[dict[str, Any]] = body["messages"]
    n_ctx = context_of(request).info.n_ctx
    wanted = body.get("max_tokens", -1)
    share = n_ctx // ANSWERS_SHARE
    room = n_ctx - (min(wanted, share) if wanted >= 0 else share)
    n_fixed = next((at for at, message in enumerate(messages) if message["role"] not in ("system", "developer")), 0)
    fixed, turns = messages[:n_fixed], messages[n_fixed:]
    starts = [0, *(at for at, message in enumerate(turns) if at and message["role"] == "user")]
    low, high = 0, len(starts) - 1
    while low < high:  # find the first start whose messages fit
        middle = (low + high) // 2
        kept = [*fixed, *turns[starts[middle] :]]
        if await prompt_tokens(request, {**body, "messages": kept}) < room:
            high = middle
        else:
            low = middle + 1
    return [*fixed, *turns[starts[low] :]]
