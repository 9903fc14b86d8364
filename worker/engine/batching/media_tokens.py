"""Images and audio among the tokens of a prompt, and of what a slot remembers. Pure.

Each token of an image is a `MediaToken`: a number below zero that is the same for the same image and no other, so that
sequences with images are compared, cut and copied like sequences of text. It carries what is needed once the image
itself is gone. A sequence holds all tokens of an image or none.

With M-RoPE an image takes fewer positions than tokens: a sequence's next position lags behind the number of its tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llama_corral.common.base.errors import InvalidRequest

from ..messages import MEDIA_TOKEN, MediaChunk


class MediaToken(int):
    n_tokens: int
    n_pos: int
    saved: bytes
    """The image without its pixels, as llama.cpp writes it for files."""

    def __new__(cls, id: str, n_tokens: int, n_pos: int, saved: bytes) -> MediaToken:
        name = hashlib.sha256(f"{id}:{n_tokens}:{n_pos}".encode("utf-8", "surrogateescape")).digest()
        token = super().__new__(cls, -2 - int.from_bytes(name, "big"))
        token.n_tokens, token.n_pos, token.saved = n_tokens, n_pos, saved
        return token


@dataclass
class MediaContent:
    """What a MediaChunk carries for the engine."""

    kind: Literal["image", "audio"]
    token: MediaToken
    non_causal: bool  # its tokens see each other, and are computed in one physical batch
    prepared: object  # the projector's: pixels or samples; None once the model has read them


def content_of(chunk: MediaChunk) -> MediaContent:
    assert isinstance(chunk.content, MediaContent)
    return chunk.content


def with_media_tokens(tokens: Sequence[int], media: Sequence[MediaChunk]) -> list[int]:
    """A request's prompt. Raises InvalidRequest."""
    prompt = insert_media_tokens(tokens, [(chunk.start, content_of(chunk).token) for chunk in media])
    if prompt is None:
        raise InvalidRequest("Prompt contains invalid tokens")
    return prompt


def insert_media_tokens(tokens: Sequence[int], media: Sequence[tuple[int, MediaToken]]) -> list[int] | None:
    """The tokens with those of the media, (start, token), where their places are. None: the places do not fit."""
    woven = list(tokens)
    end = 0
    for start, token in media:
        stop = start + token.n_tokens
        if token.n_tokens < 1 or start < end or any(place != MEDIA_TOKEN for place in woven[start:stop]):
            return None
        if stop > len(woven):
            return None
        woven[start:stop] = [token] * token.n_tokens
        end = stop
    return None if MEDIA_TOKEN in woven else woven


def split_media_tokens(tokens: Sequence[int]) -> tuple[list[int], list[tuple[int, MediaToken]]]:
    """The other way round."""
    plain, media, position = list(tokens), [], 0
    if is_text(tokens):
        return plain, []
    while position < len(plain):
        token = tokens[position]
        if isinstance(token, MediaToken):
            plain[position : position + token.n_tokens] = [MEDIA_TOKEN] * token.n_tokens
            media.append((position, token))
            position += token.n_tokens
        else:
            position += 1
    return plain, media


def is_text(tokens: Sequence[int]) -> bool:
    return min(tokens, default=0) >= 0


def text_of(tokens: list[int]) -> list[int]:
    return tokens if is_text(tokens) else [token for token in tokens if token >= 0]


def lag(tokens: Sequence[int]) -> int:
    """By how much the position after these tokens is less than their number."""
    return sum(token.n_tokens - token.n_pos for _, token in split_media_tokens(tokens)[1])


def n_before(tokens: Sequence[int], position: int) -> int:
    """How many tokens stand before a position. An image that reaches across it counts as a whole."""
    n, at = 0, 0
    while n < len(tokens) and at < position:
        token = tokens[n]
        step, advance = (token.n_tokens, token.n_pos) if isinstance(token, MediaToken) else (1, 1)
        n, at = n + step, at + advance
    return n


def chunk_at(media: Sequence[MediaChunk], n: int) -> MediaChunk | None:
    """The one that comes after the first n tokens."""
    return next((chunk for chunk in media if chunk.start == n), None)


def text_end(media: Sequence[MediaChunk], n: int, n_prompt: int) -> int:
    """Where the text that goes on after n tokens ends."""
    return min((chunk.start for chunk in media if chunk.start > n), default=n_prompt)


def last_start(media: Sequence[MediaChunk], n_prompt: int) -> int:
    """From where on a prompt is computed at least, so that there is something to go on from: its end, or last image."""
    ending = (chunk.start for chunk in media if chunk.start + chunk.n_tokens == n_prompt)
    return next(ending, n_prompt - 1)
