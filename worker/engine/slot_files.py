"""A slot's memory as a file that llama-server can read, and the other way round.

Called by `core` on the engine thread, between two steps and with an idle slot. The container is llama.cpp's own; its
token list holds llama-server's packed payload, or the plain tokens of older servers.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...presets.errors import InvalidRequest, ServerFault
from .activation import Activation
from .context import Context
from .llama import C
from .slots import Slot

_MARK, _VERSION = -1, 1
_NO_FILE = "No available space in KV cache or invalid slot save file"


@dataclass(frozen=True)
class SlotFile:
    """What was saved or restored."""

    id_slot: int
    n_tokens: int
    n_bytes: int
    milliseconds: float


class BrokenFile(Exception):
    pass


def pack(tokens: Sequence[int]) -> list[int]:
    """A mark, the version, the tokens after their number, and the number of images, all as 32-bit words."""
    return [_MARK, _VERSION, len(tokens), *tokens, 0]


def unpack(words: Sequence[int]) -> list[int]:
    """The tokens. Raises BrokenFile."""
    if not words or words[0] != _MARK:
        return list(words)
    if len(words) < 2 or words[1] != _VERSION:
        raise BrokenFile("Unsupported server tokens state version")
    end = 3 + (words[2] & 0xFFFFFFFF) if len(words) > 2 else len(words)
    if len(words) <= end:
        raise BrokenFile("Unexpected end of server tokens state")
    if words[end] != 0:
        raise BrokenFile("Cannot restore media tokens without an mmproj")
    if len(words) > end + 1:
        raise BrokenFile("Trailing data in server tokens state")
    return list(words[3:end])


def save(slot: Slot, context: Context, path: Path) -> SlotFile:
    """Replaces a file of that name only when the new one is complete."""
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


def restore(slot: Slot, context: Context, path: Path, activation: Activation) -> SlotFile:
    """Raises InvalidRequest; then the slot remembers nothing. A file knows no adapters: `activation` stands in."""
    started = time.monotonic()
    context.forget(slot.id)
    slot.remember([], activation)
    try:
        words, n_bytes = _load(slot.id, context, path)
        tokens = unpack(words)
        if len(tokens) > slot.n_ctx:
            raise BrokenFile("Restored prompt does not fit in the slot context")
        if not context.model.vocab.contains(tokens) or context.last_position(slot.id) + 1 != len(tokens):
            raise BrokenFile("Invalid tokens in slot save file")
    except BrokenFile as error:
        context.forget(slot.id)
        raise InvalidRequest(f"Unable to restore slot: {error}") from None
    slot.remember(tokens, activation)
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
    """How long its token list is: the third word of the container, checked against the file's size."""
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
