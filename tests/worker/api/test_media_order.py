"""Requests with files are decoded one after the other, but none waits for another request's video."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from llama_corral.worker.api.request.media_prompts import place_media, read_prompts
from llama_corral.worker.api.request.prompts import Prompt
from llama_corral.worker.engine.messages import PromptText
from media_files import png, wav

VIDEO = b"\x1a\x45\xdf\xa3" + bytes(100)  # begins like Matroska
MPEG_TS = b"G".ljust(188, b"\0") * 2


class Decoder:
    """A model that decodes no video until it may; it counts the files that it decodes at the same time."""

    vocab, n_ctx, media = SimpleNamespace(), 1024, SimpleNamespace(vision=True, audio=True, video=True)

    def __init__(self) -> None:
        self.video_begun, self.goes_on = threading.Event(), threading.Event()
        self.n_images = self.most_images = 0

    def tokenize_media(
        self, parts: Sequence[PromptText], files: Sequence[bytes], given_up: Callable[[], bool]
    ) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        if files[-1] in (VIDEO, MPEG_TS):
            self.video_begun.set()
            assert self.goes_on.wait(60)
        else:
            self.n_images += 1
            self.most_images = max(self.most_images, self.n_images)
            threading.Event().wait(0.01)
            self.n_images -= 1
        return (1,), ()


async def of_chat(files: Sequence[bytes], model: Any) -> Prompt:
    return await place_media([PromptText("<__media__>")], [], None, model, files)  # type: ignore[arg-type]


async def of_completion(files: Sequence[bytes], model: Any) -> Prompt:
    data = [base64.b64encode(file).decode() for file in files]
    return (await read_prompts({"prompt_string": "<__media__>", "multimodal_data": data}, model))[0]


@pytest.mark.parametrize("read", [of_chat, of_completion])
@pytest.mark.parametrize("video", [VIDEO, MPEG_TS])
async def test_images_and_audio_do_not_wait_for_a_video(read: Any, video: bytes) -> None:
    model = Decoder()
    long = asyncio.ensure_future(read([png(), video], model))
    try:
        await asyncio.to_thread(model.video_begun.wait, 60)
        others = [asyncio.ensure_future(read([file], model)) for file in (png(), wav(), png())]
        assert await asyncio.wait_for(asyncio.gather(*others), 30) == [Prompt((1,), ())] * 3
        assert not long.done()
        assert model.most_images == 1
    finally:
        model.goes_on.set()
    await long
