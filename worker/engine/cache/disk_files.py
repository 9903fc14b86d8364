"""The file format of a prompt and its state, valid only for the same model with the same settings.

    mark, version, lengths and a digest | header as JSON | tokens, as in `slot_files` | state | states of checkpoints

The header is verified when the directory is read, the state when a prompt is loaded, so that llama.cpp gets only data
that it wrote. The checksum is computed from the sums of pages: it is as fast as memory, and detects the damage that
disks and crashes do to files. Uses neither slots nor llama.cpp.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..adapters.activation import Activation
from ..batching.checkpoints import Checkpoint
from ..batching.media_tokens import MediaToken
from ..batching.prefix import common_prefix
from .slot_files import BrokenFile, pack, unpack

StateBytes = NDArray[np.uint8]

_PREAMBLE = struct.Struct("<8sIIQ16s")  # mark, version, bytes of the header, bytes of the tokens, digest of both
_MARK, VERSION = b"CORRALkv", 1
_PAGE = 4096
_PIECE = 16 << 20
"""Number of bytes read or written between two checks of the deadline."""
_NOBODYS = -1
"""The job id of a checkpoint that an earlier process has made."""


class DiskFileHeader(Struct, frozen=True):
    key: str
    scales: tuple[float, ...]
    begin: int  # index of the first token computed with the adapters
    checkpoints: tuple[tuple[int, int, int, int], ...]  # tokens, first and last position, bytes
    n_state: int
    checksum: str

    @property
    def n_bytes(self) -> int:
        return self.n_state + sum(n for *_, n in self.checkpoints)


class DiskPrompt(Struct, frozen=True, eq=False):
    """A prompt file without its state."""

    path: Path
    tokens: list[int]
    activation: Activation
    header: DiskFileHeader
    offset: int  # of the state in the file

    def common(self, tokens: Sequence[int], activation: Activation) -> int:
        return min(common_prefix(self.tokens, tokens), self.activation.common_length(activation))


def name_of(key: str, tokens: Sequence[int], activation: Activation) -> str:
    """Return the file name for a prompt. It is equal for equal prompts of the same model: no prompt is stored twice."""
    words = ",".join(map(str, tokens)) + repr(activation)
    return f"{key[:16]}-{hashlib.blake2b(words.encode(), digest_size=12).hexdigest()}"


def encode(
    key: str, tokens: Sequence[int], activation: Activation, checkpoints: Sequence[Checkpoint], state: StateBytes
) -> tuple[bytes, list[StateBytes]]:
    """Return the file's head and the states that follow it. Raises ServerFault for an image that cannot be saved."""
    parts = [state, *(checkpoint.state for checkpoint in checkpoints)]
    facts = DiskFileHeader(
        key,
        activation.scales,
        activation.begin,
        tuple((c.n_tokens, c.first, c.last, c.state.nbytes) for c in checkpoints),
        state.nbytes,
        checksum(parts),
    )
    described, words = msgspec.json.encode(facts), array("i", pack(tokens)).tobytes()
    digest = hashlib.blake2b(described + words, digest_size=16).digest()
    return _PREAMBLE.pack(_MARK, VERSION, len(described), len(words), digest) + described + words, parts


def write(file: IO[bytes], head: bytes, parts: Sequence[StateBytes], deadline: float) -> bool:
    """Write the file. Return False if it stopped because it would not finish by the deadline. Raises OSError."""
    started, n_all, n_done = time.monotonic(), sum(part.nbytes for part in parts), 0
    _write_all(file, memoryview(head))
    for part in parts:
        view = part.data
        for begin in range(0, len(view), _PIECE):
            now = time.monotonic()
            left = (now - started) * (n_all - n_done) / n_done if n_done else 0.0
            if now + left > deadline:
                return False
            _write_all(file, view[begin : begin + _PIECE])
            n_done += len(view[begin : begin + _PIECE])
    return True


def read_head(path: Path, key: str, read_media: Callable[[bytes], MediaToken | None] | None) -> DiskPrompt:
    """Read a file without its state. Raises OSError, and BrokenFile for a damaged file or one of another format."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        preamble = file.read(_PREAMBLE.size)
        if len(preamble) < _PREAMBLE.size:
            raise BrokenFile("too short")
        mark, version, n_facts, n_words, digest = _PREAMBLE.unpack(preamble)
        offset = _PREAMBLE.size + n_facts + n_words
        if (mark, version) != (_MARK, VERSION) or offset > size or n_words % 4:
            raise BrokenFile("unknown format or version")
        head = file.read(n_facts + n_words)
    if hashlib.blake2b(head, digest_size=16).digest() != digest:
        raise BrokenFile("damaged")
    try:
        facts = msgspec.json.decode(head[:n_facts], type=DiskFileHeader)
    except msgspec.MsgspecError as error:
        raise BrokenFile(str(error)) from None
    if facts.key != key or min(facts.n_state, *(n for *_, n in facts.checkpoints), 1) < 1:
        raise BrokenFile("written for another model or other settings")
    if size != offset + facts.n_bytes:
        raise BrokenFile("wrong file size")
    tokens = unpack(array("i", head[n_facts:]), read_media)
    return DiskPrompt(path, tokens, Activation(facts.scales, facts.begin), facts, offset)


def read(prompt: DiskPrompt, deadline: float) -> tuple[StateBytes, list[Checkpoint]]:
    """Read the state and the checkpoints. Raises OSError, BrokenFile, and TimeoutError after the deadline."""
    facts = prompt.header
    with prompt.path.open("rb", buffering=0) as file:
        file.seek(prompt.offset)
        parts = [_read_part(file, n, deadline) for n in (facts.n_state, *(n for *_, n in facts.checkpoints))]
    if checksum(parts) != facts.checksum:
        raise BrokenFile("damaged")
    checkpoints = [
        Checkpoint(_NOBODYS, n_tokens, first, last, part)
        for (n_tokens, first, last, _), part in zip(facts.checkpoints, parts[1:], strict=True)
    ]
    return parts[0], checkpoints


def checksum(parts: Sequence[StateBytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        n_whole = len(part) // _PAGE * _PAGE
        digest.update(part[:n_whole].view(np.uint64).reshape(-1, _PAGE // 8).sum(axis=1).data)
        digest.update(part[n_whole:].data)
    return digest.hexdigest()


def _read_part(file: IO[bytes], n_bytes: int, deadline: float) -> StateBytes:
    part = np.empty(n_bytes, np.uint8)
    view, n_done = part.data, 0
    while n_done < n_bytes:
        if time.monotonic() > deadline:
            raise TimeoutError
        n_read = file.readinto(view[n_done : n_done + _PIECE])  # type: ignore[attr-defined]
        if not n_read:
            raise BrokenFile("truncated")
        n_done += n_read
    return part


def _write_all(file: IO[bytes], data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
