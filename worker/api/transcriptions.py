"""`/v1/audio/transcriptions`: speech to text with a chat model that supports audio input.

The form becomes a chat request with one message, which has the instruction and the recording. The answer is the
transcription.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, NotSupported
from llama_corral.common.web.json_fields import Fields

from ..chat.content import UPLOADED_FILE
from .completions import answer_chat
from .openai_transcription import OpenAITranscription
from .request.forms import FORM, Form, read_form
from .serving import read_request
from .variants import context_of

INSTRUCTION = "Transcribe audio to text"
LFM2_INSTRUCTION = "Perform ASR."
"""The system message that LFM2 models were trained on.

Like llama-server, this server detects these models by the tool list tag in their chat template (`_LFM2_MARK`).
"""
_LFM2_MARK = "<|tool_list_start|>"


async def transcriptions(request: web.Request) -> web.StreamResponse:
    worker = context_of(request)
    async with worker.engine.use() as loaded:
        if loaded.media is None or not loaded.media.audio:
            raise NotSupported("The current model does not support audio input.")
        form = await _read(request)
        if "file" not in form.files:
            raise InvalidRequest("No input file found for transcription")
        worker.apply_keep_alive({name: text for name, text in form.texts.items() if text})
        body = chat_body(form.texts, is_lfm2=_LFM2_MARK in worker.model.chat.source)
        return await answer_chat(request, body, OpenAITranscription, files=[form.files.pop("file")])


async def _read(request: web.Request) -> Form:
    if request.content_type == FORM:
        return await read_form(request)
    return Form(await read_request(request), {})  # the caller refuses it, as it has no file


def chat_body(texts: Mapping[str, Any], *, is_lfm2: bool = False) -> dict[str, Any]:
    """Return the chat request for the form's text fields.

    Converts the numbers that llama-server reads from a form (`max_tokens`, `temperature`); other fields are kept.
    """
    fields = Fields(texts)
    if fields.string("response_format", default="json") != "json":
        raise InvalidRequest("Only 'json' response_format is supported for transcription")
    prompt = fields.string("prompt", default="") or ("" if is_lfm2 else INSTRUCTION)
    if language := fields.string("language", default=""):
        prompt += f" (language: {language})"
    messages: list[dict[str, Any]] = [{"role": "system", "content": LFM2_INSTRUCTION}] if is_lfm2 else []
    messages.append({"role": "user", "content": [{"type": "text", "text": prompt}, UPLOADED_FILE]})
    body = {name: value for name, value in texts.items() if name not in ("prompt", "response_format")}
    body |= {"messages": messages, "stream": texts.get("stream") == "true"}
    for name, whole in (("max_tokens", True), ("temperature", False)):
        if name in texts:
            body[name] = _number(name, texts[name], whole)
    return body


def _number(name: str, text: Any, whole: bool) -> float:
    try:
        value = int(text) if whole else float(text)
        is_finite = math.isfinite(value)
    except (ValueError, TypeError, OverflowError):
        is_finite = False
    if not is_finite:
        raise InvalidRequest(f"Field '{name}': must be {'an integer' if whole else 'a number'}, but is {text!r}")
    return value
