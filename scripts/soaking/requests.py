"""Makes random requests of every dialect, streamed or not, with a text that only a complete answer contains."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from .target import CHATS, EMBEDDER

WORDS = ("quick", "brown", "fox", "jumps", "over", "lazy", "dog", "herd", "horses", "stand", "fence", "morning")


@dataclass(frozen=True)
class RequestSpec:
    what: str
    path: str
    body: dict[str, Any]
    whole: bytes
    """A text that the answer contains if it is complete."""
    streams: bool = False
    refused: int = 0
    """The status that an invalid request must get; 0 for a valid one."""


def any_request(chance: random.Random) -> RequestSpec:
    kind = chance.choices((_chat, _completion, _anthropic, _ollama, _embedding, _wrong), (6, 3, 3, 3, 3, 1))[0]
    return kind(chance)


def text(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.choice((3, 10, 60))))


def _common(chance: random.Random) -> tuple[str, bool, int]:
    model = chance.choice((*CHATS, "cattle"))
    return model, chance.random() < 0.5, chance.choice((1, 8, 32, 100, 400))


def _messages(chance: random.Random) -> list[dict[str, str]]:
    return [{"role": "user", "content": text(chance)}]


def _chat(chance: random.Random) -> RequestSpec:
    model, streams, n = _common(chance)
    body = {"model": model, "messages": _messages(chance), "max_tokens": n, "stream": streams}
    return RequestSpec(
        "chat", "/v1/chat/completions", body, b"data: [DONE]" if streams else b'"finish_reason"', streams
    )


def _completion(chance: random.Random) -> RequestSpec:
    model, streams, n = _common(chance)
    body = {"model": model, "prompt": text(chance), "n_predict": n, "stream": streams}
    return RequestSpec("completion", "/completion", body, b'"stop_type"', streams)


def _anthropic(chance: random.Random) -> RequestSpec:
    model, streams, n = _common(chance)
    body = {"model": model, "messages": _messages(chance), "max_tokens": n, "stream": streams}
    return RequestSpec("anthropic", "/v1/messages", body, b'"message_stop"' if streams else b'"stop_reason"', streams)


def _ollama(chance: random.Random) -> RequestSpec:
    model, streams, n = _common(chance)
    body = {"model": model, "messages": _messages(chance), "options": {"num_predict": n}, "stream": streams}
    if chance.random() < 0.3:
        body["keep_alive"] = chance.choice((0, "1s", "3s"))
    return RequestSpec("ollama", "/api/chat", body, b'"done_reason"', streams)


def _embedding(chance: random.Random) -> RequestSpec:
    texts = [text(chance) for _ in range(chance.choice((1, 3)))]
    return RequestSpec("embedding", "/v1/embeddings", {"model": EMBEDDER, "input": texts}, b'"embedding"')


def _wrong(chance: random.Random) -> RequestSpec:
    if chance.random() < 0.5:
        body: dict[str, Any] = {"model": "nowhere", "messages": _messages(chance)}
        return RequestSpec("unknown model", "/v1/chat/completions", body, b"", refused=400)
    body = {"model": chance.choice(CHATS), "messages": 7}
    return RequestSpec("wrong field", "/v1/chat/completions", body, b"", refused=400)
