"""Anthropic's endpoints: `/v1/messages` and `/v1/messages/count_tokens`.

`request` converts a request to the equivalent chat request, which is then processed like any other. `answer` renders
the result as content blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from aiohttp import web
from llama_corral.common.web.application import json_response

from ..answers.results import random_id
from ..completions import answer_chat, prompt_tokens
from ..serving import begin_use, read_request
from ..variants import context_of
from .answer import AnthropicMessages
from .request import chat_body


async def messages(request: web.Request) -> web.StreamResponse:
    body = _chat_body(request, await begin_use(request))
    return await answer_chat(request, body, partial(AnthropicMessages, stops=body.get("stop", ())), random_id("msg_"))


async def count_tokens(request: web.Request) -> web.StreamResponse:
    body = _chat_body(request, await read_request(request))
    return json_response({"input_tokens": await prompt_tokens(request, body)})


def _chat_body(request: web.Request, body: Mapping[str, Any]) -> dict[str, Any]:
    defaults = context_of(request).model.chat_defaults
    by_option = "enable_thinking" in defaults.variables
    return chat_body(body, prefills=defaults.prefill_assistant, thinks=by_option)
