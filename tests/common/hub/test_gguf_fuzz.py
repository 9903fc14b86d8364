"""Files that hypothesis makes for the reader of GGUF headers, with `target` towards files of which more is read."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

from fuzzing.files import GGUF, any_file, gguf_text
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st
from llama_corral.common.hub import gguf_header
from llama_corral.common.hub.gguf_header import MAX_STRING, read_header

MOST_TIMES = 40
"""Memory of reading a file, as a multiple of its size: each small tensor becomes an object."""
LEAST_BYTES = 8 << 20


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_any_file_is_read_or_refused(seed: int, edits: list[tuple[int, int]]) -> None:
    data = bytearray(any_file(random.Random(seed), GGUF, ()))
    for place, byte in edits:
        if data:
            data[place % len(data)] = byte
    target(float(GGUF.check(bytes(data))), label="entries that were read")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_reading_takes_memory_in_proportion_to_the_file(tmp_path: Path, seed: int) -> None:
    """A forged count must not reserve memory."""
    path = tmp_path / "model.gguf"
    path.write_bytes(any_file(random.Random(seed), GGUF, ()))
    gguf_header._read_cached.cache_clear()
    tracemalloc.start()
    try:
        read_header(path)
    except gguf_header.GgufError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < LEAST_BYTES + MOST_TIMES * path.stat().st_size


def test_a_forged_length_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    key = gguf_text(b"a") + b"\x08\0\0\0" + (2**62).to_bytes(8, "little")
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + key + b"x" * MAX_STRING)
    assert GGUF.check(path.read_bytes()) == 0
