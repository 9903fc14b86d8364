"""The endpoints that generate text: `/completion`, `/v1/completions`, `/v1/chat/completions`.

Each parses its request into prompts and params and passes them with its dialect to `streaming`. The model cannot be
unloaded from the first use of its vocabulary to the last byte of the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.application import json_response
from msgspec.structs import replace

from ..chat.prompt import RenderedPrompt
from ..chat.quoting import NO_SPECIAL_TOKENS, SpecialTokens
from ..chat.request import ChatRequest, probabilities_wanted, read_chat
from ..engine.runner import LoadedModel
from .answers.dialect import AnswerInfo, Dialect
from .answers.native import Native
from .answers.openai_chat import OpenAIChat
from .answers.openai_completions import OpenAICompletions, refuse_unsupported, wants_chosen_probs
from .answers.results import random_id
from .answers.streaming import BeforeEnd, respond
from .control import ACTIVE
from .request.generation_settings import brief_settings
from .request.media_prompts import check_kinds, place_media, read_prompts
from .request.params import CompletionParams, params_of
from .request.prompts import Prompt
from .request.reading import OFF_LOOP_CHARACTERS, PromptReader
from .request.turns import in_turn
from .serving import WorkerContext, begin_use, read_request, share_of
from .variants import context_of

DialectOf = Callable[[AnswerInfo], Dialect]


async def native(request: web.Request) -> web.StreamResponse:
    return await _complete_text(request, Native)


async def openai_completions(request: web.Request) -> web.StreamResponse:
    return await _complete_text(request, OpenAICompletions, openai=True)


async def openai_chat(request: web.Request) -> web.StreamResponse:
    return await answer_chat(request, await begin_use(request), OpenAIChat)


async def answer_chat(
    request: web.Request,
    body: dict[str, Any],
    dialect: DialectOf,
    id: str = "",
    before_end: BeforeEnd | None = None,
    files: Sequence[bytes] = (),
) -> web.StreamResponse:
    """Answer the chat request `body`; other dialects that translate to a chat request call this too.

    Empties `body`. `files`: files whose markers are already in the messages; they precede the files that the messages
    name. For the other arguments see `respond`.
    """
    worker = context_of(request)
    chat = read_chat(body, worker.model.chat_defaults)
    async with worker.engine.use() as loaded:
        prompt, params = await _read_prompt(worker, loaded, chat, body, files)
        del chat, files
        body.clear()  # images are large, and streaming the answer may take minutes
        return await answer_prompts(request, worker, loaded, [prompt], params, dialect, id, before_end)


async def _read_prompt(
    worker: WorkerContext, loaded: LoadedModel, chat: ChatRequest, body: dict[str, Any], files: Sequence[bytes]
) -> tuple[Prompt, CompletionParams]:
    rendered = await render_chat(worker, loaded, chat)
    probabilities = probabilities_wanted(body)
    read = await params_of({**body, **probabilities, **rendered.fields}, worker.model.defaults, loaded)
    params = replace(
        read.with_chosen_probs() if probabilities else read,
        generation_prompt=rendered.generation_prompt,
        chat_format="peg-native" if worker.settings.chat.jinja else "Content-only",
        reply=rendered.reply,
    )
    return await place_media(rendered.parts, chat.media, worker.media, loaded, files), params


async def _complete_text(request: web.Request, dialect: DialectOf, *, openai: bool = False) -> web.StreamResponse:
    worker = context_of(request)
    body = await begin_use(request)
    if body.get("prompt") is None:
        raise InvalidRequest('"prompt" is required')
    if openai:
        refuse_unsupported(body)
    async with worker.engine.use() as loaded:
        params = await params_of(body, worker.model.defaults, loaded)
        if openai and wants_chosen_probs(body):
            params = params.with_chosen_probs()
        prompts = await read_prompts(body["prompt"], loaded)
        body.clear()  # as above
        return await answer_prompts(request, worker, loaded, prompts, params, dialect)


async def answer_prompts(
    request: web.Request,
    worker: WorkerContext,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    params: CompletionParams,
    dialect: DialectOf,
    id: str = "",
    before_end: BeforeEnd | None = None,
) -> web.StreamResponse:
    shown = brief_settings(params)
    vocab = loaded.vocab
    answer = AnswerInfo(
        params,
        worker.name,
        worker.build,
        [prompt.tokens for prompt in prompts],
        lambda tokens: vocab.detokenize([token for token in tokens if token >= 0]),
        count_tokens=lambda text: len(vocab.tokenize(text)),
        id=id or random_id("chatcmpl-"),
    )
    n_tokens = sum(len(prompt.tokens) for prompt in prompts) if params.delimiters else 0
    generations = await PromptReader(vocab).run(
        n_tokens, lambda: [params.generation(prompt, shown) for prompt in prompts]
    )
    active = request.app[ACTIVE]
    with active.running(answer.id, loaded, share_of(request), controllable=params.reasoning_control) as completion:
        return await respond(request, completion, generations, dialect(answer), params.sse_ping_interval, before_end)


async def render_chat(worker: WorkerContext, loaded: LoadedModel, chat: ChatRequest) -> RenderedPrompt:
    form, builtin = worker.model.chat, loaded.apply_builtin_template
    PromptReader(loaded.vocab, loaded.n_ctx).check_size(n_characters := chat.n_characters)
    special = await _special_tokens(worker, loaded)
    quickly = not chat.has_schema and n_characters <= OFF_LOOP_CHARACTERS
    if quickly and (prompt := form.render_quickly(chat, builtin, special)) is not None:
        return prompt
    return await in_turn(lambda *, soon, given_up: form.render(chat, builtin, special, given_up, soon=soon))


async def _special_tokens(worker: WorkerContext, loaded: LoadedModel) -> SpecialTokens:
    """Return the tokens whose spelling is ordinary text in messages from users and tools."""
    form, vocab = worker.model.chat, loaded.vocab
    if worker.settings.chat.special_in_messages:
        return NO_SPECIAL_TOKENS
    if form.knows_special_tokens:
        return form.special_tokens(vocab)
    return await asyncio.to_thread(form.special_tokens, vocab)


async def apply_template(request: web.Request) -> web.StreamResponse:
    worker = context_of(request)
    chat = read_chat(await read_request(request), worker.model.chat_defaults)
    async with worker.engine.use() as loaded:
        check_kinds(chat.media, loaded)
        return json_response({"prompt": (await render_chat(worker, loaded, chat)).text})


async def count_chat_tokens(request: web.Request) -> web.StreamResponse:
    n_tokens = await prompt_tokens(request, await read_request(request))
    return json_response({"input_tokens": n_tokens, "object": "response.input_tokens"})


async def prompt_tokens(request: web.Request, body: dict[str, Any]) -> int:
    """Return the number of tokens in a chat request's prompt."""
    worker = context_of(request)
    chat = read_chat(body, worker.model.chat_defaults)
    async with worker.engine.use() as loaded:
        prompt = (await render_chat(worker, loaded, chat)).parts
        return len((await place_media(prompt, chat.media, worker.media, loaded)).tokens)
