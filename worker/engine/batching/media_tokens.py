"""Tokens for images and audio in a prompt and in a slot's contents. Pure.

Each token of an image is a `MediaToken`: a negative number that is equal for equal images only, so that sequences with
images are compared, cut and copied like sequences of text. It carries the data that is needed after the image itself
was freed. A sequence contains all tokens of an image or none.

With M-RoPE an image uses fewer positions than tokens: a sequence's next position is lower than its number of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from llama_corral.common.base.errors import InvalidRequest
from msgspec import Struct

from ..messages import MEDIA_TOKEN, MediaChunk


class MediaToken(int):
    n_tokens: int
    n_pos: int
    saved: bytes
    """The image without its pixels, as llama.cpp serializes it for slot files."""

    def __new__(cls, id: str, n_tokens: int, n_pos: int, saved: bytes) -> MediaToken:
        name = hashlib.sha256(f"{id}:{n_tokens}:{n_pos}".encode("utf-8", "surrogateescape")).digest()
        token = super().__new__(cls, -2 - int.from_bytes(name, "big"))
        token.n_tokens, token.n_pos, token.saved = n_tokens, n_pos, saved
        return token


class MediaContent(Struct):
    """The engine's data of a MediaChunk."""

    kind: Literal["image", "audio"]
    token: MediaToken
    non_causal: bool  # True if its tokens attend to each other; then they must be computed in one physical batch
    prepared: object  # the projector's pixels or samples; None once the model has read them


def content_of(chunk: MediaChunk) -> MediaContent:
    assert isinstance(chunk.content, MediaContent)
    return chunk.content


def with_media_tokens(tokens: Sequence[int], media: Sequence[MediaChunk]) -> list[int]:
    """Return a request's tokens with its media tokens inserted. Raises InvalidRequest."""
    prompt = insert_media_tokens(tokens, [(chunk.start, content_of(chunk).token) for chunk in media])
    if prompt is None:
        raise InvalidRequest("Prompt contains invalid tokens")
    return prompt


def insert_media_tokens(tokens: Sequence[int], media: Sequence[tuple[int, MediaToken]]) -> list[int] | None:
    """Replace the placeholders by media tokens, given as (start, token). None: they do not match the placeholders."""
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
    """Reverse `insert_media_tokens`: return the tokens with placeholders, and the media as (start, token)."""
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
    """Return by how much the position after these tokens is lower than their number."""
    return sum(token.n_tokens - token.n_pos for _, token in split_media_tokens(tokens)[1])


def n_before(tokens: Sequence[int], position: int) -> int:
    """Return the number of tokens before a position. An image that extends across it counts as a whole."""
    n, at = 0, 0
    while n < len(tokens) and at < position:
        token = tokens[n]
        step, advance = (token.n_tokens, token.n_pos) if isinstance(token, MediaToken) else (1, 1)
        n, at = n + step, at + advance
    return n


def chunk_at(media: Sequence[MediaChunk], n: int) -> MediaChunk | None:
    """Return the chunk that begins after the first n tokens, or None."""
    return next((chunk for chunk in media if chunk.start == n), None)


def text_end(media: Sequence[MediaChunk], n: int, n_prompt: int) -> int:
    """Return the index at which the text after the first n tokens ends: the next chunk's start, or the prompt's end."""
    return min((chunk.start for chunk in media if chunk.start > n), default=n_prompt)


def last_start(media: Sequence[MediaChunk], n_prompt: int) -> int:
    """Return the index from which a prompt must be computed at least, to get logits: its last token or last image."""
    ending = (chunk.start for chunk in media if chunk.start + chunk.n_tokens == n_prompt)
    return next(ending, n_prompt - 1)
