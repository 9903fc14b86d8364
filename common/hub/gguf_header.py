"""Reads the header of a GGUF file: metadata and tensor sizes, without loading the model.

Used before a model is loaded: by the preset sources (modalities) and by placement (memory). Knows the file format, but
not the meaning of the keys. The file is read through a window of bounded size and not mapped into memory, since a
mapped file that shrinks would kill the router with SIGBUS. Vocabularies and long texts are skipped without decoding
them. A file may be made to exhaust its readers, so the size of a header, and what is kept of it, are limited.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO

from msgspec import Struct

from ..base.errors import ModelFilesError
from ..base.user_files import open_regular, why_unreadable
from .file_cache import FileVersion, version_of
from .gguf_types import SCALARS, TENSOR_TYPES, TYPE_ARRAY, TYPE_STRING

MAGIC = b"GGUF"
WINDOW = 1 << 20
"""Bytes in memory at a time; a vocabulary of 262k entries takes about ten reads."""
MAX_HEADER = 128 << 20
"""Bytes of a whole header. llama.cpp reads all of it into memory; the largest in use have 50 MB."""
MAX_KEPT = 4 << 20
"""Bytes of a header that are kept: names, numbers, short strings and tensors; the largest in use need 0.5 MB."""
MAX_TEXTS = 4 << 20
"""Bytes of the long strings that `read_texts` keeps of one file."""
MAX_STRING = 1 << 20
"""Strings with more bytes are always skipped: some files embed a whole tokenizer.json, which is not needed here."""
MAX_WORD = 256
"""Longer strings, such as templates and licenses, are kept only by `read_texts`."""
MAX_KEY = (1 << 16) - 1
"""Bytes of a key, as the format says."""
MAX_TENSOR_NAME = 256
"""Bytes; llama.cpp accepts 63."""
MAX_LIST = 1024
"""Arrays with more elements are skipped: per-layer settings are kept, vocabularies are not."""
MAX_ELEMENTS = 1 << 22
"""Limit of array strings in a file: five times the largest vocabulary with merges. Each takes time, or memory."""
MAX_HEADERS = 32
"""Headers in memory: up to MAX_KEPT each. For lists of many models see `model_card.read_brief_card`."""
MAX_PARAMETERS = (1 << 63) - 1
"""Elements of all tensors together; llama.cpp's limit for one tensor."""
MAX_ENTRIES = 1 << 17
"""Limit of keys, and of tensors, in one file: a hundred times the largest number in use."""

_ENTRY_BYTES = 200
"""Memory of the objects for one key or tensor, without its name and its numbers."""
_NUMBER_BYTES = 40

Scalar = str | int | float | bool


class GgufError(ValueError):
    """The file is missing, truncated or not a GGUF file; the message starts with its path."""


class HeaderTooLarge(GgufError):
    """The header exceeds a limit, so the file must not be loaded either: llama.cpp has no such limits."""


class Tensor(Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    """Bytes from the start of the data section."""
    size: int
    """Bytes, without padding."""


class Header(Struct, frozen=True):
    version: int
    metadata: Mapping[str, Scalar | tuple[Scalar, ...]]
    """Scalars, and arrays of at most MAX_LIST elements; without long strings."""
    lengths: Mapping[str, int]
    """Number of elements of every array, including skipped ones."""
    tensors: tuple[Tensor, ...]
    data_offset: int
    file_size: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header; the last MAX_HEADERS are cached until their files change. Raise GgufError."""
    with _naming(path):
        return _read_cached(version_of(path))


def read_texts(path: str | os.PathLike[str]) -> Header:
    """Read the header with strings of up to MAX_STRING bytes, until they have MAX_TEXTS. Cached nowhere.

    Raise GgufError.
    """
    with _naming(path):
        return _read(version_of(path), longest=MAX_STRING)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the path to the message of an error, and raise it as a GgufError."""
    try:
        yield
    except OSError as error:
        raise GgufError(f"{path}: {why_unreadable(error)}") from None
    except GgufError as error:
        raise type(error)(f"{path}: {error}") from None


def refuse_large_header(path: str | os.PathLike[str]) -> None:
    """Raise ModelFilesError if the header exceeds a limit. Other faults are left to llama.cpp, which names them."""
    try:
        read_header(path)
    except HeaderTooLarge as error:
        raise ModelFilesError(str(error)) from None
    except GgufError:
        return


def has_mtp_head(path: str | os.PathLike[str]) -> bool:
    return any(name.endswith(".nextn.eh_proj.weight") for name in _tensor_names(path))


def is_mtp_head(path: str | os.PathLike[str]) -> bool:
    """Return True if a file contains the MTP head of a model and none of its other layers."""
    return has_mtp_head(path) and "blk.0.attn_norm.weight" not in _tensor_names(path)


def _tensor_names(path: str | os.PathLike[str]) -> set[str]:
    """Return the tensors' names; an empty set if it is not a valid GGUF file, since loading it reports the error."""
    try:
        return {tensor.name for tensor in read_header(path).tensors}
    except GgufError:
        return set()


@functools.lru_cache(maxsize=MAX_HEADERS)
def _read_cached(version: FileVersion) -> Header:
    return _read(version, longest=MAX_WORD)


def _read(version: FileVersion, *, longest: int) -> Header:
    with open_regular(version.path) as file:
        return _HeaderReader(file, version.size, longest).header()


class _HeaderReader:
    """Reads forward through the file; `pos` is the offset of the next unread byte.

    `longest`: bytes of the longest string that is kept.
    """

    def __init__(self, file: BinaryIO, size: int, longest: int) -> None:
        self.file = file
        self.size = size
        self.longest = longest
        self.kept = 0
        self.texts = 0
        self.n_parameters = 0
        self.pos = 0
        self.window = b""
        self.base = 0
        self.elements = 0

    def header(self) -> Header:
        version = self._preamble()
        n_tensors = self._count("tensors", self.number("<Q"))
        n_keys = self._count("keys", self.number("<Q"))
        metadata: dict[str, Scalar | tuple[Scalar, ...]] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_keys):
            self._entry(metadata, lengths)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise GgufError(f"general.alignment is {alignment!r}, not a power of two")
        infos = [self._tensor() for _ in range(n_tensors)]
        self._check_size()
        data_offset = -(-self.pos // alignment) * alignment
        tensors = _with_sizes(infos, max(self.size - data_offset, 0))
        return Header(version, MappingProxyType(metadata), MappingProxyType(lengths), tensors, data_offset, self.size)

    def _preamble(self) -> int:
        start = self.take(min(4, self.size))
        if start != MAGIC:
            raise GgufError(f"not a GGUF file (it starts with {start!r})" if start else "the file is empty")
        version = self.number("<I")
        if version & 0xFFFF == 0:
            raise GgufError("the file has the wrong byte order (big-endian)")
        if version not in (2, 3):
            raise GgufError(f"GGUF version {version} is not supported, only 2 and 3")
        return version

    def _count(self, what: str, count: int) -> int:
        if count > MAX_ENTRIES:
            raise HeaderTooLarge(f"claims to have {count} {what}, the limit is {MAX_ENTRIES}: corrupt")
        return count

    def _entry(self, metadata: dict[str, Scalar | tuple[Scalar, ...]], lengths: dict[str, int]) -> None:
        key = self.name("a key", MAX_KEY)
        if key in metadata or key in lengths:
            raise GgufError(f"key {_shown(key)} appears twice")
        kind = self.number("<I")
        if kind == TYPE_ARRAY:
            items = self._array(key, lengths)
            if items is not None:
                metadata[key] = items
        elif kind == TYPE_STRING:
            text = self.string()
            if text is not None:
                metadata[key] = text
        else:
            metadata[key] = self._scalars(key, kind, 1)[0]

    def _array(self, key: str, lengths: dict[str, int]) -> tuple[Scalar, ...] | None:
        kind, count = self.number("<I"), self.number("<Q")
        lengths[key] = count
        if kind == TYPE_STRING:
            self.elements += count
            if count * 8 > self.size - self.pos:
                raise GgufError(f"array {_shown(key)} claims {count} strings: truncated or corrupt")
            if self.elements > MAX_ELEMENTS:
                raise HeaderTooLarge(
                    f"array {_shown(key)} claims {count} strings, the limit of a file is {MAX_ELEMENTS}"
                )
            if count > MAX_LIST:
                self.skip_strings(count)
                return None
            return tuple(text for text in (self.string() for _ in range(count)) if text is not None)
        if count > MAX_LIST:
            self.skip(count * _scalar(key, kind).size)
            return None
        return self._scalars(key, kind, count)

    def _scalars(self, key: str, kind: int, count: int) -> tuple[Scalar, ...]:
        item = _scalar(key, kind)
        self._keep(count * _NUMBER_BYTES)
        return struct.unpack(f"<{count}{item.format[1:]}", self.take(count * item.size))

    def _tensor(self) -> Tensor:
        name = self.name("a tensor name", MAX_TENSOR_NAME)
        n_dims = self.number("<I")
        if n_dims > 4:
            raise GgufError(f"tensor {_shown(name)} claims {n_dims} dimensions: corrupt")
        shape = struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims))
        kind, offset = self.number("<I"), self.number("<Q")
        type_name, block, block_bytes = TENSOR_TYPES.get(kind, (f"type {kind}", 0, 0))
        n_elements = math.prod(shape)
        self.n_parameters += n_elements
        if self.n_parameters > MAX_PARAMETERS:
            raise GgufError(f"tensor {_shown(name)} claims {n_elements} elements: corrupt")
        size = n_elements // block * block_bytes if block else -1
        return Tensor(name, shape, type_name, offset, size)

    def number(self, format: str) -> int:
        value: int = struct.unpack(format, self.take(struct.calcsize(format)))[0]
        return value

    def name(self, what: str, longest: int) -> str:
        """Read the name of an entry, and count the memory of the entry."""
        length = self.number("<Q")
        if length > self.size - self.pos:
            raise _truncated(self.size)
        if length > longest:
            raise GgufError(f"{what} has {length} bytes, the limit is {longest}: corrupt")
        self._keep(length + _ENTRY_BYTES)
        return self.take(length).decode("utf-8", "replace")

    def string(self) -> str | None:
        """Read a string; skip it and return None if it is longer than what is kept."""
        length = self.number("<Q")
        if length <= MAX_WORD:
            self._keep(length + _NUMBER_BYTES)
        elif length <= self.longest and self.texts + length <= MAX_TEXTS:
            self.texts += length
        else:
            self.skip(length)
            return None
        return self.take(length).decode("utf-8", "replace")

    def _keep(self, count: int) -> None:
        """Count bytes that are kept, before they are read."""
        self.kept += count
        if self.kept > MAX_KEPT:
            raise HeaderTooLarge(f"its names, settings and tensors take more than {MAX_KEPT >> 20} MiB")
        self._check_size()

    def _check_size(self) -> None:
        if self.pos > MAX_HEADER:
            raise HeaderTooLarge(f"its header has more than {MAX_HEADER >> 20} MiB")

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings. Written for speed: a vocabulary has hundreds of thousands of strings."""
        length_at = struct.Struct("<Q").unpack_from
        left = count
        while left:
            self._fill(8)
            self._check_size()
            window, pos, last = self.window, self.pos - self.base, len(self.window) - 8
            for done in range(left):
                if pos > last:
                    left -= done
                    break
                pos += 8 + length_at(window, pos)[0]
            else:
                left = 0
            self.pos = self.base + pos
        self.skip(0)

    def skip(self, count: int) -> None:
        self.pos += count
        if self.pos > self.size:
            raise _truncated(self.size)
        self._check_size()

    def take(self, count: int) -> bytes:
        self._fill(count)
        start = self.pos - self.base
        self.pos += count
        return self.window[start : start + count]

    def _fill(self, count: int) -> None:
        """Make `count` (at most MAX_STRING) bytes at `pos` available in the window."""
        if self.base <= self.pos and self.pos + count <= self.base + len(self.window):
            return
        if self.pos + count > self.size:
            raise _truncated(self.size)
        self.file.seek(self.pos)
        self.window = self.file.read(max(WINDOW, count))
        self.base = self.pos
        if len(self.window) < count:
            raise _truncated(self.pos + len(self.window))


def _shown(name: str) -> str:
    """Return a name for an error: printable, and not longer than a line."""
    return repr(name if len(name) <= 80 else name[:80] + "…")


def _truncated(size: int) -> GgufError:
    return GgufError(f"truncated: the file ends after {size} bytes, inside its header")


def _scalar(key: str, kind: int) -> struct.Struct:
    if kind not in SCALARS:
        raise GgufError(f"value of {_shown(key)} has the unknown type {kind}: corrupt")
    return SCALARS[kind]


def _with_sizes(infos: list[Tensor], available: int) -> tuple[Tensor, ...]:
    """Check that every tensor is inside the file. For a type missing in our table, the gap to the next is the size."""
    starts = sorted({tensor.offset for tensor in infos} | {available})
    following = dict(itertools.pairwise(starts))
    result = []
    for tensor in infos:
        size = tensor.size if tensor.size >= 0 else max(following.get(tensor.offset, 0) - tensor.offset, 0)
        if tensor.offset + size > available:
            raise GgufError(
                f"truncated: tensor {_shown(tensor.name)} ends {tensor.offset + size} bytes into the data,"
                f" of which the file has {available}"
            )
        result.append(Tensor(tensor.name, tensor.shape, tensor.type, tensor.offset, size))
    return tuple(result)
