"""Converts prompts with images, audio or video to the engine's tokens and media chunks.

`place_media` is for chats, `read_prompts` for `/completion`, `read_entries` for `/embeddings`. `media.sources` loads
the files; the projector decodes them and tokenizes the text around them, on another thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from llama_corral.common.base.errors import InvalidRequest, MediaNotSupported
from llama_corral.common.web.json_fields import wrong_type

from ...engine.media.video_files import may_be_video
from ...engine.messages import MediaChunk, PromptText
from ...media.encoded import decode_base64
from ...media.inspection import check_file
from ...media.sources import MediaLoader, MediaSource
from .limits import MAX_PROMPTS, check_number
from .prompts import Prompt, n_characters, split_prompts, tokenize_prompt
from .reading import PromptReader
from .samplers import Tokenizer

_DECODER = ThreadPoolExecutor(1, "media")
"""Decoded files are large, so those of one request are decoded after those of another."""
_VIDEO_DECODER = ThreadPoolExecutor(1, "video")
"""For requests with a video: it may take two minutes, and those with images or audio do not wait for it."""

UNSUPPORTED = "Multimodal data provided, but model does not support multimodal requests."


class MediaModalities(Protocol):
    """The kinds of media that a projector supports."""

    @property
    def vision(self) -> bool: ...

    @property
    def audio(self) -> bool: ...

    @property
    def video(self) -> bool: ...


class PromptModel(Protocol):
    """The part of a loaded model that prompts need."""

    @property
    def vocab(self) -> Tokenizer: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def media(self) -> MediaModalities | None: ...

    def tokenize_media(
        self, parts: Sequence[PromptText], files: Sequence[bytes], given_up: Callable[[], bool]
    ) -> tuple[tuple[int, ...], tuple[MediaChunk, ...]]: ...


async def place_media(
    parts: Sequence[PromptText],
    sources: Sequence[MediaSource],
    loader: MediaLoader,
    model: PromptModel,
    files: Sequence[bytes] = (),
) -> Prompt:
    """Load the sources and return the prompt.

    The text has one marker per file: first for `files`, which are loaded already, then for `sources`.
    """
    check_kinds(sources, model)
    fetched = await loader.load(sources) if sources else []
    if not files and not fetched:
        return Prompt(await tokenize_parts(parts, PromptReader(model.vocab, model.n_ctx), add_special=True))
    return await _with_files(parts, [*files, *fetched], model)


async def tokenize_parts(parts: Sequence[PromptText], reader: PromptReader, *, add_special: bool) -> list[int]:
    if len(parts) == 1:
        text, parses = parts[0].text, parts[0].parse_special
        return await reader.run(len(text), lambda: reader.tokenize(text, add_special, parses))
    n_characters = sum(len(part.text) for part in parts)
    return await reader.run(n_characters, lambda: reader.tokenize_parts(parts, add_special))


def check_kinds(sources: Sequence[MediaSource], model: PromptModel) -> None:
    """Raise MediaNotSupported if the model does not support a kind of media; call it before loading the sources."""
    support = model.media
    for kind in dict.fromkeys(source.kind for source in sources):
        if support is None or not {"image": support.vision, "audio": support.audio, "video": support.video}[kind]:
            raise MediaNotSupported(
                f"{kind} input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
            )


async def read_prompts(value: object, model: PromptModel) -> list[Prompt]:
    """Read prompts in the forms of `prompts`, or as `{"prompt_string": …, "multimodal_data": [base64…]}`."""
    entries = split_prompts(value)
    if not entries:
        raise InvalidRequest('"prompt" must not be empty')
    check_number("prompt", len(entries), MAX_PROMPTS)
    return await read_entries(entries, model)


async def read_entries(entries: Sequence[object], model: PromptModel) -> list[Prompt]:
    plain = [entry for entry in entries if not _has_files(entry)]
    reader = PromptReader(model.vocab, model.n_ctx)
    tokens = iter(await reader.run(n_characters(plain), lambda: [tokenize_prompt(entry, reader) for entry in plain]))
    return [await _read_entry(entry, model) if _has_files(entry) else Prompt(next(tokens)) for entry in entries]


def _has_files(entry: object) -> bool:
    return isinstance(entry, dict) and "prompt_string" in entry and entry.get("multimodal_data") is not None


async def _read_entry(entry: object, model: PromptModel) -> Prompt:
    assert isinstance(entry, dict)
    if model.media is None:
        raise InvalidRequest(UNSUPPORTED)
    text, data = entry["prompt_string"], entry["multimodal_data"]
    if not isinstance(text, str):
        raise wrong_type("prompt_string", "string", text)
    items = [data] if isinstance(data, str) else data
    if not isinstance(items, list):
        raise wrong_type("multimodal_data", "array of strings", data)
    for item in items:
        if not isinstance(item, str):
            raise wrong_type("multimodal_data", "array of strings", item)
    files = await asyncio.to_thread(lambda: [decode_base64(item) for item in items])
    return await _with_files([PromptText(text)], files, model)


async def _with_files(parts: Sequence[PromptText], files: Sequence[bytes], model: PromptModel) -> Prompt:
    def work() -> Prompt:
        for data in files:
            check_file(data)
        return Prompt(*model.tokenize_media(parts, files, given_up.is_set))

    PromptReader(model.vocab, model.n_ctx).check_size(sum(len(part.text) for part in parts))
    given_up = threading.Event()
    try:
        decoder = _VIDEO_DECODER if any(map(may_be_video, files)) else _DECODER
        return await asyncio.get_running_loop().run_in_executor(decoder, work)
    finally:
        given_up.set()  # the client may have disconnected
