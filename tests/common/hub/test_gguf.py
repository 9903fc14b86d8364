"""The GGUF header reader: results, errors, and limits of time and memory for broken files."""

from __future__ import annotations

import contextlib
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from file_edits import touch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_corral.common.base.errors import ModelFilesError
from llama_corral.common.hub import gguf_header
from llama_corral.common.hub.gguf_header import (
    GgufError,
    Header,
    HeaderTooLarge,
    read_header,
    read_texts,
    refuse_large_header,
)
from llama_corral.common.hub.gguf_types import TENSOR_TYPES


def write_gguf(path: Path, tokens: int = 40, **metadata: Any) -> Path:
    """A small but complete file: scalars of several kinds, arrays, two tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("tokenizer.chat_template", "{{ messages }} ü")
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(tokens)])
    writer.add_array("tokenizer.ggml.scores", [float(i) for i in range(tokens)])
    writer.add_array("llama.attention.head_count_kv", [4, 2])
    for key, value in metadata.items():
        writer.add_string(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((tokens, 32), dtype=np.float32))
    writer.add_tensor("output.weight", np.zeros((tokens, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "sample.gguf").read_bytes()


def test_metadata_and_tensors(tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "a.gguf"))
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["tokenizer.chat_template"] == "{{ messages }} ü"
    assert header.metadata["llama.attention.head_count_kv"] == (4, 2)
    assert header.lengths["tokenizer.ggml.tokens"] == 40
    embedding, output = header.tensors
    assert (embedding.name, embedding.shape, embedding.type) == ("token_embd.weight", (32, 40), "f32")
    assert (output.shape, output.type, output.size) == ((32, 40), "q8_0", 40 * 34)
    assert header.tensor_bytes == 40 * 32 * 4 + 40 * 34
    assert header.data_offset + output.offset + output.size <= header.file_size


def test_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", tokens=1500)
    header, reader = read_header(path), gguf.GGUFReader(path)
    assert header.data_offset == reader.data_offset
    assert {tensor.name: (tensor.size, header.data_offset + tensor.offset) for tensor in header.tensors} == {
        tensor.name: (tensor.n_bytes, tensor.data_offset) for tensor in reader.tensors
    }
    assert set(header.metadata) | set(header.lengths) == {key for key in reader.fields if not key.startswith("GGUF.")}


def test_long_arrays_and_long_strings_are_skipped(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf", tokens=5000, **{"tokenizer.huggingface.json": "x" * (3 << 20), "after": "it"}
    )
    header = read_header(path)
    assert header.lengths["tokenizer.ggml.tokens"] == header.lengths["tokenizer.ggml.scores"] == 5000
    assert not {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.huggingface.json"} & set(header.metadata)
    assert header.metadata["after"] == "it"


def test_read_again_only_when_the_file_changed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    first = read_header(path)
    assert read_header(str(path)) is first
    touch(path)
    assert read_header(path) is not first


def test_a_large_vocabulary_is_fast(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    tokens = b"".join(struct.pack("<Q", 6) + b"abcdef" for _ in range(262_144))
    path.write_bytes(entries(string_array(b"tokens", 262_144, tokens)))
    started = time.process_time()
    assert read_header(path).lengths == {"tokens": 262_144}
    assert time.process_time() - started < 0.5, "measured 0.03 s"


@pytest.mark.parametrize("code", sorted(set(gguf.GGML_QUANT_SIZES) & set(TENSOR_TYPES)))
def test_tensor_types_have_the_sizes_of_the_format(code: int) -> None:
    assert TENSOR_TYPES[code][1:] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(code)]


def test_the_size_of_an_unknown_tensor_type_is_the_gap_to_the_next(tmp_path: Path) -> None:
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 64, 9999, 0)
    path = tmp_path / "new.gguf"
    header = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + tensor
    path.write_bytes(header.ljust(-(-len(header) // 32) * 32, b"\0") + b"x" * 100)
    (read,) = read_header(path).tensors
    assert (read.type, read.size) == ("type 9999", 100)


# Broken files. entries() writes a header with the given key/value bytes and no tensors.


def entries(*pairs: bytes, version: int = 3, tensors: int = 0, count: int | None = None) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, len(pairs) if count is None else count) + b"".join(pairs)


def string_array(key: bytes, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 8, count) + content


def value(key: bytes, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + content


HUGE = 1 << 62
BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "not a GGUF file"),
    "magic only": (b"GGUF", "truncated"),
    "old version": (entries(version=1), "version 1"),
    "big endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "byte order"),
    "keys forged": (entries(count=HUGE), "keys"),
    "tensors forged": (entries(tensors=HUGE), "tensors"),
    "tensors missing": (entries(tensors=3), "truncated"),
    "key length forged": (entries(struct.pack("<Q", HUGE)), "truncated"),
    "string length forged": (entries(value(b"k", 8, struct.pack("<Q", HUGE))), "truncated"),
    "string array forged": (entries(string_array(b"k", HUGE)), "claims"),
    "inner length forged": (entries(string_array(b"k", 2000, struct.pack("<Q", HUGE) * 2000)), "truncated"),
    "number array forged": (entries(value(b"k", 9, struct.pack("<IQ", 4, HUGE))), "truncated"),
    "nested array": (entries(value(b"k", 9, struct.pack("<IQ", 9, 1))), "unknown type 9"),
    "unknown type": (entries(value(b"k", 99, b"")), "unknown type 99"),
    "key twice": (entries(value(b"k", 7, b"\1"), value(b"k", 7, b"\1")), "twice"),
    "alignment zero": (entries(value(b"general.alignment", 4, bytes(4))), "power of two"),
    "five dimensions": (entries(struct.pack("<QcI", 1, b"t", 5), tensors=1, count=0), "5 dimensions"),
    "tensor beyond the end": (
        entries(struct.pack("<QcIQIQ", 1, b"t", 1, HUGE, 0, 0), tensors=1, count=0),
        "truncated: tensor 't'",
    ),
    "offset beyond the end": (
        entries(struct.pack("<QcIQIQ", 1, b"t", 1, 1, 0, HUGE), tensors=1, count=0),
        "truncated: tensor 't'",
    ),
}


@pytest.mark.parametrize(("content", "complaint"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_raises_one_clear_error(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=complaint) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_forged_count_in_a_large_sparse_file_ends_soon(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(entries(string_array(b"k", 1 << 36)))
        file.truncate(1 << 40)
    started = time.process_time()
    with pytest.raises(GgufError, match="claims"):
        read_header(path)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("name", "why"),
    [("missing.gguf", "no such file"), (".", "this is a directory, not a file"), ("file/a.gguf", "no such file")],
)
def test_no_such_file_and_a_directory(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GgufError) as refused:
        read_header(tmp_path / name)
    assert str(refused.value) == f"{tmp_path / name}: {why}"


def test_truncated_anywhere(tmp_path: Path, sample: bytes) -> None:
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 400, 7), *range(400, len(sample), 301)]:
        path.write_bytes(sample[:length])
        with pytest.raises(GgufError):
            read_header(path)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), max_size=8), cut=st.integers(0, 9000))
def test_mutated_files_raise_only_the_documented_error(
    tmp_path: Path, sample: bytes, edits: list[tuple[int, int]], cut: int
) -> None:
    broken = bytearray(sample)
    for position, byte in edits:
        broken[position % len(broken)] = byte
    path = tmp_path / "mutated.gguf"
    path.write_bytes(broken[: len(broken) - cut])
    gguf_header._read_cached.cache_clear()
    with contextlib.suppress(GgufError):
        assert isinstance(read_header(path), Header)


# Files that are made to exhaust their readers.


def text(key: bytes, length: int) -> bytes:
    return value(key, 8, struct.pack("<Q", length))


def sparse(path: Path, n_texts: int, length: int) -> Path:
    """A header with long strings that take no space on disk."""
    with path.open("wb") as file:
        file.write(entries(value(b"general.architecture", 8, struct.pack("<Q", 5) + b"llama"), count=n_texts + 1))
        for number in range(n_texts):
            file.write(text(b"%d" % number, length))
            file.seek(length, os.SEEK_CUR)
        file.truncate(file.tell() + 64)
    return path


def peak_memory(read: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


TINY_TENSOR = struct.pack("<QcIIQ", 1, b"t", 0, 0, 0)
EXHAUSTING = {
    "list of empty strings": (
        entries(string_array(b"k", (1 << 22) + 1, bytes(8 * ((1 << 22) + 1)))),
        "array 'k' claims 4194305 strings, the limit of a file is 4194304",
    ),
    "tensors": (entries(TINY_TENSOR * 30_000, tensors=30_000, count=0), "take more than 4 MiB"),
    "keys": (entries(*(value(b"%d" % i, 7, b"\1") for i in range(30_000))), "take more than 4 MiB"),
    "lists of numbers": (
        entries(*(value(b"%d" % i, 9, struct.pack("<IQ", 0, 1024) + bytes(1024)) for i in range(300))),
        "take more than 4 MiB",
    ),
    "words": (
        entries(*(string_array(b"%d" % i, 1000, (struct.pack("<Q", 100) + bytes(100)) * 1000) for i in range(60))),
        "take more than 4 MiB",
    ),
}


@pytest.mark.parametrize("reader", [read_header, read_texts])
@pytest.mark.parametrize(("content", "why"), EXHAUSTING.values(), ids=EXHAUSTING)
def test_what_is_kept_of_a_header_is_limited(
    tmp_path: Path, reader: Callable[[Path], Header], content: bytes, why: str
) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)

    def read() -> None:
        with pytest.raises(HeaderTooLarge, match=why):
            reader(path)

    assert peak_memory(read) < 32 << 20


@pytest.mark.parametrize("reader", [read_header, read_texts])
def test_a_header_of_gigabytes_is_refused_without_reading_it(tmp_path: Path, reader: Callable[[Path], Header]) -> None:
    path = sparse(tmp_path / "hostile.gguf", 3000, 1 << 20)

    def read() -> None:
        with pytest.raises(HeaderTooLarge, match="its header has more than 128 MiB"):
            reader(path)

    assert peak_memory(read) < 16 << 20
    with pytest.raises(ModelFilesError, match=r"hostile\.gguf: its header has more than 128 MiB"):
        refuse_large_header(path)


def test_long_texts_are_kept_only_to_be_shown(tmp_path: Path) -> None:
    license = "x" * 5000
    path = write_gguf(tmp_path / "a.gguf", **{"general.license": license})
    assert "general.license" not in read_header(path).metadata
    assert read_texts(path).metadata["general.license"] == license
    many = sparse(tmp_path / "many.gguf", 100, 1 << 20)
    assert len(read_header(many).metadata) == 1
    assert len(read_texts(many).metadata) == 1 + 4
    assert peak_memory(lambda: read_texts(many)) < 16 << 20


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (entries(text(b"k" * (1 << 16), 0)), "a key has 65536 bytes"),
        (entries(struct.pack("<Q", 300) + b"t" * 300, tensors=1, count=0), "a tensor name has 300 bytes"),
        (
            entries(struct.pack("<QcI4QIQ", 1, b"t", 4, *[1 << 60] * 4, 99, 0) + bytes(64), tensors=1, count=0),
            "claims 17668.* elements",
        ),
    ],
    ids=["key", "tensor name", "elements"],
)
def test_names_and_sizes_beyond_the_format(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=why):
        read_header(path)


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe.gguf")
    with pytest.raises(GgufError, match=r"pipe\.gguf: this is not a regular file"):
        read_header(path)
