"""Reads and writes a slot's KV cache as a file that llama-server can read.

Runs on the engine thread between two steps, on an idle slot. The container is llama.cpp's own; its token list is
llama-server's packed payload, or the plain tokens of older servers.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_corral.common.base.errors import InvalidRequest, ServerFault
from msgspec import Struct

from ..adapters.activation import Activation
from ..batching.media_tokens import MediaToken, insert_media_tokens, lag, split_media_tokens, text_of
from ..batching.slots import Slot
from ..llama.context import Context
from ..llama.llama import C

_MARK, _VERSION = -1, 1
_NO_FILE = "No available space in KV cache or invalid slot save file"


class SlotFile(Struct, frozen=True):
    """The result of a save or restore."""

    id_slot: int
    n_tokens: int
    n_bytes: int
    milliseconds: float


class BrokenFile(Exception):
    pass


ReadMedia = Callable[[bytes], MediaToken | None]


def pack(tokens: Sequence[int]) -> list[int]:
    """Encode tokens as llama-server's payload of 32-bit words. Raises ServerFault for an image that cannot be saved.

    Layout: mark, version, number of tokens, tokens, number of images, start index of each image; then for each image
    its number of bytes and the bytes; then padding to a whole word.
    """
    plain, media = split_media_tokens(tokens)
    if not all(token.saved for _, token in media):
        raise ServerFault("Unable to save slot: it contains an image that cannot be saved")
    images = b"".join(struct.pack("=I", len(token.saved)) + token.saved for _, token in media)
    words = array("i", images + bytes(-len(images) % 4))
    return [_MARK, _VERSION, len(plain), *plain, len(media), *(start for start, _ in media), *words]


def unpack(words: Sequence[int], read_media: ReadMedia | None = None) -> list[int]:
    """Decode a payload and return the tokens. Raises BrokenFile, also for images if `read_media` is None."""
    if not words or words[0] != _MARK:
        return list(words)
    if len(words) < 2 or words[1] != _VERSION:
        raise BrokenFile("Unsupported server tokens state version")
    end = 3 + (words[2] & 0xFFFFFFFF) if len(words) > 2 else len(words)
    if len(words) <= end:
        raise BrokenFile("Unexpected end of server tokens state")
    n_media = words[end] & 0xFFFFFFFF
    if n_media and read_media is None:
        raise BrokenFile("Cannot restore media tokens without an mmproj")
    begin = end + 1 + n_media
    if len(words) < begin:
        raise BrokenFile("Unexpected end of server tokens state")
    media = _unpack_media(array("i", words[begin:]).tobytes(), n_media, read_media)
    tokens = (
        insert_media_tokens(words[3:end], list(zip(words[end + 1 : begin], media, strict=True)))
        if media
        else list(words[3:end])
    )
    if tokens is None:
        raise BrokenFile("Invalid tokens in slot save file")
    return tokens


def _unpack_media(data: bytes, n_media: int, read_media: ReadMedia | None) -> list[MediaToken]:
    media: list[MediaToken] = []
    while len(media) < n_media:
        if len(data) < 4:
            raise BrokenFile("Unexpected end of server tokens state")
        end = 4 + int(struct.unpack_from("=I", data)[0])
        if len(data) < end:
            raise BrokenFile("Unexpected end of server tokens state")
        token = read_media(data[4:end]) if read_media and end > 4 else None
        if token is None:
            raise BrokenFile("Cannot load media chunk from server tokens state")
        media.append(token)
        data = data[end:]
    if len(data) >= 4:
        raise BrokenFile("Trailing data in server tokens state")
    return media


def save(slot: Slot, context: Context, path: Path) -> SlotFile:
    """Write the slot to a file. An existing file is replaced only when the new one is complete. Raises ServerFault."""
    started = time.monotonic()
    words = pack(slot.tokens)
    partial = path.with_name(f".saving-{os.getpid()}-{slot.id}")
    try:
        n_bytes = C.llama_state_seq_save_file(
            context.pointer, os.fsencode(partial), slot.id, (ctypes.c_int32 * len(words))(*words), len(words)
        )
        if not n_bytes:
            raise ServerFault("Unable to save slot")
        partial.replace(path)
    except OSError as error:
        raise ServerFault(f"Unable to save slot: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return SlotFile(slot.id, len(slot.tokens), n_bytes, 1e3 * (time.monotonic() - started))


def restore(slot: Slot, context: Context, path: Path, activation: Activation, read_media: ReadMedia | None) -> SlotFile:
    """Load a slot from a file. Raises InvalidRequest; then the slot is empty.

    A file does not record the adapters its tokens were computed with: `activation` is used instead.
    """
    started = time.monotonic()
    context.clear_sequence(slot.id)
    slot.set_contents([], activation)
    try:
        words, n_bytes = _load(slot.id, context, path)
        tokens = unpack(words, read_media)
        if len(tokens) > slot.n_ctx:
            raise BrokenFile("Restored prompt does not fit in the slot context")
        n_positions = len(tokens) - lag(tokens)
        if not context.model.vocab.contains(text_of(tokens)) or context.last_position(slot.id) + 1 != n_positions:
            raise BrokenFile("Invalid tokens in slot save file")
    except BrokenFile as error:
        context.clear_sequence(slot.id)
        raise InvalidRequest(f"Unable to restore slot: {error}") from None
    slot.set_contents(tokens, activation)
    return SlotFile(slot.id, len(tokens), n_bytes, 1e3 * (time.monotonic() - started))


def _load(sequence: int, context: Context, path: Path) -> tuple[list[int], int]:
    room = _n_words(path)
    words, n_words = (ctypes.c_int32 * room)(), ctypes.c_size_t()
    n_bytes = C.llama_state_seq_load_file(
        context.pointer, os.fsencode(path), sequence, words, room, ctypes.byref(n_words)
    )
    if not n_bytes or n_words.value > room:
        raise BrokenFile(_NO_FILE)
    return list(words[: n_words.value]), n_bytes


def _n_words(path: Path) -> int:
    """Return the length of the file's token list: the third word of the container, checked against the file's size."""
    try:
        with path.open("rb") as file:
            header = file.read(12)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        raise BrokenFile(_NO_FILE) from None
    n_words = struct.unpack("=I", header[8:])[0] if len(header) == 12 else 0
    if not 0 < 4 * n_words <= size - 12:
        raise BrokenFile(_NO_FILE)
    return int(n_words)
