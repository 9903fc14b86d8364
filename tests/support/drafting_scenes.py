"""Scenes for models that draft: conversations, shared prefixes, long prompts; and programs that draft."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from drafting import FOX
from engine_tools import ask
from llama_corral.worker.engine.messages import Piece, Sampling
from llama_corral.worker.engine.runner import LoadedModel

LONG = [3 + i * 7 % 400 for i in range(700)]
ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
Scene = Callable[[LoadedModel], Awaitable[None]]


async def a_conversation(loaded: LoadedModel) -> None:
    tokens = loaded.vocab.tokenize(FOX, True, True)
    for _ in range(3):
        result = await ask(loaded, tokens, n_predict=30).one()
        tokens = [*tokens, *result.tokens, *loaded.vocab.tokenize(" And then")]


async def a_beginning_that_is_shared(loaded: LoadedModel) -> None:
    for request in [ask(loaded, [*LONG, 5 + i], n_predict=20) for i in range(4)]:
        await request.one()


async def choices(loaded: LoadedModel) -> None:
    await ask(loaded, FOX, n=2, n_predict=30).all()


async def a_long_prompt_during_a_stream(loaded: LoadedModel) -> None:
    stream = ask(loaded, FOX, n_predict=300, stream=True, sampling=ENDLESS)
    await stream.until(lambda events: any(isinstance(event, Piece) for event in events))
    await ask(loaded, LONG, n_predict=30).one()
    await stream.one()


async def one_prompt_after_another(loaded: LoadedModel) -> None:
    for begin in (0, 100, 0, 200, 100):
        await ask(loaded, LONG[begin : begin + 300], n_predict=10, id_slot=0).one()


SCENES = [a_conversation, a_beginning_that_is_shared, choices, a_long_prompt_during_a_stream, one_prompt_after_another]
BODY = {"prompt": FOX, "n_predict": 20, "temperature": 0, "speculative.p_min": 0.9}


def check_drafting(client: Any, more: dict[str, Any], kinds: str) -> None:
    answer = client.post("/completion", json={**BODY, **more}).raise_for_status().json()
    assert answer["timings"]["draft_n"] >= answer["timings"]["draft_n_accepted"] > 0
    assert answer["generation_settings"]["speculative.types"] == kinds


PRESETS = """
[grams]
model = {models}/tiny-llama.gguf
spec-type = ngram-simple,ngram-cache
spec-ngram-simple-size-n = 2
ctx-size = 1024
[two]
model = {models}/tiny-llama-b.gguf
model-draft = {models}/tiny-llama-b.gguf
ctx-size = 1024
"""
