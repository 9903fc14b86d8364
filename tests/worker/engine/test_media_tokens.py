"""Media tokens: equality, begin and end, and positions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.engine.batching.media_tokens import (
    MediaContent,
    MediaToken,
    insert_media_tokens,
    is_text,
    lag,
    last_start,
    n_before,
    split_media_tokens,
    text_end,
    text_of,
    with_media_tokens,
)
from llama_corral.worker.engine.batching.prefix import common_prefix
from llama_corral.worker.engine.cache.slot_files import BrokenFile, pack, unpack
from llama_corral.worker.engine.messages import MEDIA_TOKEN, MediaChunk

tokens = st.integers(0, 1000)
media = st.builds(
    lambda id, n, fewer: MediaToken(id, n, max(1, n - fewer), f"{id} {n} {fewer}".encode()),
    st.sampled_from("abc"),
    st.integers(1, 5),
    st.integers(0, 4),
)


@st.composite
def sequences(draw: st.DrawFn) -> list[int]:
    parts = draw(st.lists(tokens | media, max_size=12))
    return [item for part in parts for item in ([part] * part.n_tokens if isinstance(part, MediaToken) else [part])]


def read(data: bytes) -> MediaToken | None:
    return SAVED.get(data)


SAVED: dict[bytes, MediaToken] = {}


def test_equal_tokens_only_for_equal_images() -> None:
    image = MediaToken("id", 3, 2, b"")
    assert image == MediaToken("id", 3, 2, b"other bytes")
    assert len({image, MediaToken("id", 4, 2, b""), MediaToken("id", 3, 3, b""), MediaToken("di", 3, 2, b"")}) == 4
    assert image < MEDIA_TOKEN


@given(sequences())
def test_inserting_and_splitting_media_tokens_are_inverse(sequence: list[int]) -> None:
    plain, images = split_media_tokens(sequence)
    assert all(token >= MEDIA_TOKEN for token in plain)
    assert insert_media_tokens(plain, images) == sequence
    assert (not images) == is_text(sequence)
    assert text_of(sequence) == [token for token in plain if token != MEDIA_TOKEN]


@given(sequences())
def test_slot_files_keep_images(sequence: list[int]) -> None:
    SAVED.update({token.saved: token for _, token in split_media_tokens(sequence)[1]})
    assert unpack(pack(sequence), read) == sequence


@given(sequences(), sequences())
def test_a_common_prefix_never_ends_inside_an_image(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    ends = {0}
    position = 0
    while position < len(a):
        token = a[position]
        position += token.n_tokens if isinstance(token, MediaToken) else 1
        ends.add(position)
    assert n in ends


@given(sequences())
def test_positions_lag_behind_tokens(sequence: list[int]) -> None:
    images = split_media_tokens(sequence)[1]
    n_positions = len(sequence) - lag(sequence)
    assert n_positions == len(text_of(sequence)) + sum(image.n_pos for _, image in images)
    assert n_before(sequence, n_positions) == len(sequence)
    for start, _ in images:
        assert n_before(sequence, start - lag(sequence[:start])) == start


@pytest.mark.parametrize(
    ("tokens", "starts"),
    [
        ([1, -1, -1, 2], []),
        ([1, -1, -1, 2], [2]),
        ([1, -1, -1, 2], [0]),
        ([1, -1, -1], [1, 1]),
        ([1, -1], [1]),
        ([1, -1, -1, -1], [1]),
        ([1, 2, 3], [1]),
        ([1, -1, -1], [7]),
    ],
)
def test_media_that_do_not_match_their_placeholders_are_rejected(tokens: list[int], starts: list[int]) -> None:
    image = MediaToken("id", 2, 2, b"")
    assert insert_media_tokens(tokens, [(start, image) for start in starts]) is None
    chunks = [MediaChunk(start, 2, 2, "id", MediaContent("image", image, False, None)) for start in starts]
    with pytest.raises(InvalidRequest, match="invalid tokens"):
        with_media_tokens(tokens, chunks)


def chunk(start: int, n: int) -> MediaChunk:
    return MediaChunk(start, n, n, "id", None)


def test_text_ends_at_the_next_chunk() -> None:
    chunks = [chunk(3, 4), chunk(9, 1)]
    assert [text_end(chunks, n, 12) for n in (0, 2, 3, 7, 8, 10)] == [3, 3, 9, 9, 9, 12]


def test_the_last_token_or_image_is_always_computed() -> None:
    assert last_start([], 5) == 4
    assert last_start([chunk(1, 3)], 5) == 4
    assert last_start([chunk(0, 1), chunk(2, 3)], 5) == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([-1, 1, 1, -1, 1], "end"),
        ([-1, 1, 1, -1, 1, 0], "end"),
        ([-1, 1, 1, -1, 1, 0, 8, 0], "end"),
        ([-1, 1, 1, -1, 1, 0, 0], "Cannot load"),
        ([-1, 1, 1, -1, 1, 0, 4, 0x64616221], "Cannot load"),
        ([-1, 1, 1, -1, 1, 0, 4, 0x67616D69, 5], "Trailing"),
        ([-1, 1, 1, -1, 1, 1, 4, 0x67616D69], "Invalid tokens"),
        ([-1, 1, 1, 7, 1, 0, 4, 0x67616D69], "Invalid tokens"),
        ([-1, 1, 1, -1, -1, 0], "end"),
    ],
)
def test_broken_images_in_files_are_rejected(words: list[int], why: str) -> None:
    SAVED[b"imag"] = MediaToken("id", 1, 1, b"imag")
    with pytest.raises(BrokenFile, match=why):
        unpack(words, read)
