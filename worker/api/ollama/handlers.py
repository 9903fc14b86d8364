"""Ollama's endpoints that use the model: `/api/chat`, `/api/generate`, `/api/embed`, `/api/embeddings`.

`request` parses the requests and `answer` renders the answers; in between they are processed like other chats,
completions and embeddings. The router handles `keep_alive`; a worker without a router sets its idle timeout instead.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, NotSupported
from llama_corral.common.web.application import json_response
from llama_corral.common.web.json_fields import Fields
from llama_corral.common.web.ollama import NOTHING, keep_alive_of, without_generation
from msgspec import Struct
from msgspec.structs import replace

from ...chat.formats.formats import AnswerFormat
from ...chat.request import read_chat
from ...engine.messages import Embedded, Embedding
from ...engine.runner import LoadedModel
from ..answers.dialect import AnswerInfo
from ..answers.long_lists import encoded_list, long_response
from ..completions import answer_chat, answer_prompts, render_chat
from ..embeddings import compute, n_values
from ..infill import check_vocabulary, infill_tokens
from ..request.limits import MAX_PROMPTS, check_number
from ..request.media_prompts import read_prompts, tokenize_parts
from ..request.params import CompletionParams, params_of
from ..request.prompts import Prompt, tokenize_mixed
from ..request.reading import PromptReader
from ..serving import WorkerContext, begin_use, share_of
from ..variants import context_of
from .answer import NS, FormatMessage, OllamaAnswer, RequestInfo, as_message, as_response
from .request import chat_body, completion_fields, format_fields, generate_messages, read_think, refuse_template

NO_NORM, L2 = -1, 2


class OllamaRequest(Struct, frozen=True):
    """One request and the time when it started."""

    request: web.Request
    worker: WorkerContext
    body: dict[str, Any]
    model: str  # the name in the request
    started: float

    @property
    def fields(self) -> Fields:
        return Fields(self.body)


async def _begin(request: web.Request) -> OllamaRequest:
    started = time.monotonic()
    worker, body = context_of(request), await begin_use(request)
    model = Fields(body).string("model", "name", default="")
    return OllamaRequest(request, worker, body, model or worker.name, started)


async def chat(request: web.Request) -> web.StreamResponse:
    call = await _begin(request)
    messages = call.body.get("messages") or []
    if not isinstance(messages, list):
        raise InvalidRequest("Expected 'messages' to be an array")
    if not messages:
        return await _load(call, NOTHING["chat"])
    return await _chat(call, messages, as_message)


async def generate(request: web.Request) -> web.StreamResponse:
    call = await _begin(request)
    prompt = call.fields.string("prompt", default="")
    refuse_template(call.body)
    if not prompt:
        return await _load(call, NOTHING["generate"])
    if call.fields.string("suffix", default=""):
        return await _fill_in(call)
    if call.fields.boolean("raw", default=False):
        return await _continue(call, prompt)
    return await _chat(call, generate_messages(call.body), as_response)


async def _load(call: OllamaRequest, said: Mapping[str, Any]) -> web.StreamResponse:
    """Answer a request without a prompt: it only loads or unloads the model."""
    if keep_alive_of(call.body) == 0:
        return json_response(without_generation(call.model, said, "unload"))
    async with call.worker.engine.use():
        return json_response(without_generation(call.model, said, "load"))


# -- generating ------------------------------------------------------------------------------------------------------


async def _chat(call: OllamaRequest, messages: Sequence[Any], format_message: FormatMessage) -> web.StreamResponse:
    body = chat_body(call.body, messages, continues=call.worker.model.chat_defaults.prefill_assistant)
    if call.body.get("context"):
        return await _with_context_tokens(call, body)
    wanted = {**_completion(call), **body}
    return await answer_chat(call.request, wanted, lambda answer: _dialect(call, answer, format_message))


async def _with_context_tokens(call: OllamaRequest, body: dict[str, Any]) -> web.StreamResponse:
    """Answer a prompt that follows the tokens in `context`, which an earlier answer of `/api/generate` returned."""
    worker = call.worker
    wanted = read_chat(body, worker.model.chat_defaults)
    if wanted.media:
        raise InvalidRequest("images and context cannot be combined: send the whole conversation to /api/chat")
    async with worker.engine.use() as loaded:
        prompt = await render_chat(worker, loaded, wanted)
        reader = PromptReader(loaded.vocab, loaded.n_ctx)
        earlier = tokenize_mixed(call.body["context"], reader, add_special=False, parse_special=False)
        new = await tokenize_parts(prompt.parts, reader, add_special=False)
        params = replace(
            await _params(call, loaded, prompt.fields), generation_prompt=prompt.generation_prompt, reply=prompt.reply
        )
        return await _answer(call, loaded, Prompt([*earlier, *new]), params)


async def _continue(call: OllamaRequest, prompt: str) -> web.StreamResponse:
    """Complete the prompt without a chat template."""
    async with call.worker.engine.use() as loaded:
        params = await _params(call, loaded, format_fields(call.body, chat=False))
        images = call.fields.strings("images", default=())
        text = call.worker.model.chat_defaults.media_marker * len(images) + prompt
        wanted = {"prompt_string": text, "multimodal_data": list(images)} if images else prompt
        (whole,) = await read_prompts(wanted, loaded)
        return await _answer(call, loaded, whole, params)


async def _fill_in(call: OllamaRequest) -> web.StreamResponse:
    """Generate the text between the prompt and the suffix."""
    parts = {"input_prefix": call.body["prompt"], "input_suffix": call.body["suffix"]}
    async with call.worker.engine.use() as loaded:
        try:
            check_vocabulary(loaded.vocab)
        except NotSupported as error:
            raise InvalidRequest(f'"{call.model}" does not support insert: {error.message}') from None
        whole = Prompt(await infill_tokens(call.worker, loaded, parts))
        params = await _params(call, loaded, format_fields(call.body, chat=False))
        return await _answer(call, loaded, whole, params)


def _completion(call: OllamaRequest) -> dict[str, Any]:
    return completion_fields(call.body, call.worker.info.n_ctx)


async def _params(call: OllamaRequest, loaded: LoadedModel, overrides: Mapping[str, Any]) -> CompletionParams:
    return await params_of({**_completion(call), **overrides}, call.worker.model.defaults, loaded)


async def _answer(
    call: OllamaRequest, loaded: LoadedModel, whole: Prompt, params: CompletionParams
) -> web.StreamResponse:
    return await answer_prompts(
        call.request, call.worker, loaded, [whole], params, lambda answer: _dialect(call, answer, as_response)
    )


def _dialect(call: OllamaRequest, answer: AnswerInfo, format_message: FormatMessage) -> OllamaAnswer:
    """Return the dialect; call it when the model is loaded and the prompt is ready.

    Raises InvalidRequest if the request enables thinking and the model does not support it.
    """
    if read_think(call.body).wanted and not _thinks(call, answer.params.reply.form):
        raise InvalidRequest(f'"{call.model}" does not support thinking')
    is_raw = call.fields.boolean("raw", default=False)
    asked = RequestInfo(
        call.model,
        call.started,
        time.monotonic(),
        top_logprobs=call.fields.integer("top_logprobs", default=0),
        returns_context=format_message is as_response and not is_raw,
    )
    return OllamaAnswer(answer, asked, format_message)


def _thinks(call: OllamaRequest, form: AnswerFormat) -> bool:
    return form.reasoning is not None or form.style == "channels" or "enable_thinking" in call.worker.model.chat.source


# -- embedding -------------------------------------------------------------------------------------------------------


async def embed(request: web.Request) -> web.StreamResponse:
    call = await _begin(request)
    given = call.body.get("input")
    if not isinstance(given, str | list | None) or (isinstance(given, list) and not all(map(_is_text, given))):
        raise InvalidRequest("invalid input type: expected a string or an array of strings")
    texts = [given] if isinstance(given, str) and given else given or []
    check_number("input", len(texts), MAX_PROMPTS)
    dimensions = call.fields.integer("dimensions", default=0, low=0)
    results, n_tokens, loaded_at = await _embed(call, list(texts), L2)
    shown = {
        "total_duration": int((time.monotonic() - call.started) * NS),
        "load_duration": int((loaded_at - call.started) * NS),
        "prompt_eval_count": n_tokens,
    }
    vectors = (_vector(result, dimensions) for result in results)
    return await long_response(
        n_values(results), lambda: {"model": call.model, "embeddings": encoded_list(vectors), **shown}
    )


async def embeddings(request: web.Request) -> web.StreamResponse:
    """Handle the older embedding endpoint: one text, and its vector without normalization."""
    call = await _begin(request)
    prompt = call.fields.string("prompt", default="")
    results, _, _ = await _embed(call, [prompt] if prompt else [], NO_NORM)
    return json_response({"embedding": _vector(results[0]) if results else []})


def _is_text(value: object) -> bool:
    return isinstance(value, str)


async def _embed(call: OllamaRequest, texts: list[str], normalize: int) -> tuple[list[Embedded], int, float]:
    """Return the results, the number of prompt tokens, and the time when the model was loaded.

    Without texts it only loads the model.
    """
    worker, truncates = call.worker, call.fields.boolean("truncate", default=True)
    if not worker.settings.endpoints.embeddings:
        raise NotSupported("This server does not support embeddings. Start it with `--embeddings`")
    if worker.info.pooling == "none":
        raise InvalidRequest("Pooling type 'none' returns no vector per text. Please use a different pooling type")
    async with worker.engine.use() as loaded:
        loaded_at = time.monotonic()
        size = sum(map(len, texts))
        reader = PromptReader(loaded.vocab, loaded.n_ctx, truncates=truncates)
        inputs = await reader.run(size, lambda: [reader.tokenize(text, True, True) for text in texts])
        room = loaded.embedding_room
        for tokens in inputs:
            if len(tokens) > room and not truncates:
                raise InvalidRequest("the input length exceeds the context length")
        inputs = [_truncated(tokens, room) for tokens in inputs]
        results = await compute(loaded, [Embedding(tokens, normalize) for tokens in inputs], share_of(call.request))
    return results, sum(result.n_tokens for result in results), loaded_at


def _truncated(tokens: list[int], room: int) -> list[int]:
    """Truncate to `room` tokens, but keep the last token: for many models it marks the end of the text."""
    return tokens if len(tokens) <= room else [*tokens[: room - 1], tokens[-1]]


def _vector(result: Embedded, dimensions: int = 0) -> list[float]:
    """Return the vector; with `dimensions` only its first values, normalized to length 1.

    This is for models that are trained to put the most information into the first dimensions.
    """
    vector = list(map(float, result.vectors[0]))
    if not dimensions:
        return vector
    kept = vector[:dimensions]
    norm = sum(value * value for value in kept) ** 0.5
    return [value / norm for value in kept] if norm else kept
