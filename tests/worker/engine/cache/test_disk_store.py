"""The directory of prompts: the order of eviction, no partial files, and several workers in parallel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.private_directory import PrivateDirectory
from llama_corral.worker.engine.adapters.activation import BASE, Activation
from llama_corral.worker.engine.batching.checkpoints import Checkpoint
from llama_corral.worker.engine.cache.disk_files import checksum, encode, name_of, read, read_head, write
from llama_corral.worker.engine.cache.disk_store import DiskStore, StoredFile, victims
from llama_corral.worker.engine.cache.slot_files import BrokenFile

KEY = "0123456789abcdef0123456789abcdef"
FOREVER = float("inf")

kept_files = st.lists(
    st.builds(StoredFile, st.integers(0, 9).map(float), st.integers(1, 50), st.text("ab", max_size=2))
)


@given(kept_files, st.integers(1, 60), st.integers(0, 9), st.integers(0, 200))
def test_the_oldest_files_are_evicted_and_no_more_than_needed(
    files: list[StoredFile], n_new: int, used: int, limit: int
) -> None:
    chosen = victims(files, n_new, float(used), limit)
    total = sum(file.n_bytes for file in files)
    if chosen is None:
        older = [file for file in files if file.used <= used]
        assert total - sum(file.n_bytes for file in older) + n_new > limit, "older ones would have made room"
        return
    assert chosen == sorted(files)[: len(chosen)]
    assert total - sum(file.n_bytes for file in chosen) + n_new <= limit
    assert all(file.used <= used for file in chosen)
    if chosen:
        assert total - sum(file.n_bytes for file in chosen[:-1]) + n_new > limit, "one fewer would have done"


def store_at(directory: Path, max_bytes: int = 1000) -> DiskStore:
    return DiskStore(PrivateDirectory("", str(directory)), max_bytes)


def put(store: DiskStore, name: str, n_bytes: int, used: float) -> bool:
    def fill(file: IO[bytes]) -> bool:
        return file.write(b"x" * n_bytes) == n_bytes

    return store.put(name, n_bytes, used, fill)


def names(store: DiskStore) -> list[str]:
    return sorted(path.stem for path in store.names(""))


def test_the_total_size_is_limited(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    assert all(put(store, name, 400, used) for name, used in (("b", 2.0), ("a", 1.0)))
    assert not put(store, "c", 400, 0.5), "what others used since stays"
    assert not put(store, "c", 1001, 9.0)
    assert put(store, "c", 400, 3.0)
    assert names(store) == ["b", "c"]
    assert put(store, "b", 400, 4.0), "it is there: it counts as used"
    assert put(store, "d", 400, 5.0)
    assert names(store) == ["b", "d"]
    assert store.has("b", 6.0)
    assert not store.has("c", 6.0)


def test_an_aborted_write_leaves_no_file(tmp_path: Path) -> None:
    store = store_at(tmp_path)

    def fail(file: IO[bytes]) -> bool:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="space"):
        store.put("a", 100, 1.0, fail)
    assert not store.put("b", 100, 1.0, lambda file: file.write(b"half") < 0)
    assert [path.name for path in tmp_path.iterdir()] == ["writing"]


WRITER = """
import sys, time
from llama_corral.common.base.private_directory import PrivateDirectory
from llama_corral.worker.engine.cache.disk_store import DiskStore

def fill(file):
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(60)

DiskStore(PrivateDirectory("", sys.argv[1]), 1000).put("a", 600, 1.0, fill)
"""


def test_a_killed_writer_leaves_no_complete_file(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert names(store) == []
        assert not put(store, "b", 600, 2.0), "room is taken for what is being written"
        with pytest.raises(FileExistsError):
            put(store, "a", 600, 2.0) or put(store_at(tmp_path, 5000), "a", 600, 2.0)
        os.kill(writer.pid, signal.SIGKILL)
    assert names(store) == []
    assert put(store, "b", 600, 2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.prompt", "writing"]


FILLER = """
import sys
from llama_corral.common.base.private_directory import PrivateDirectory
from llama_corral.worker.engine.cache.disk_store import DiskStore

store = DiskStore(PrivateDirectory("", sys.argv[1]), 1000)
for n in range(60):
    store.put(f"{sys.argv[2]}{n}", 90, float(n), lambda file: file.write(b"x" * 90) == 90)
"""


def test_several_workers_stay_within_the_limit(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", FILLER, str(tmp_path), mine]) for mine in "abc"]
    assert [worker.wait(30) for worker in workers] == [0, 0, 0]
    left = list(tmp_path.glob("*.prompt"))
    assert len(left) == 11
    assert all(path.stat().st_size == 90 for path in left)
    assert {int(path.stem[1:]) for path in left} >= {58, 59}


# -- a file ------------------------------------------------------------------------------------------------------------


def written(path: Path, tokens: list[int], state: bytes, activation: Activation = BASE) -> Path:
    bits = np.frombuffer(state, np.uint8)
    checkpoints = [Checkpoint(7, 2, 0, 1, bits[:3].copy())]
    head, parts = encode(KEY, tokens, activation, checkpoints, bits)
    with path.open("wb", buffering=0) as file:
        assert write(file, head, parts, FOREVER)
    return path


tokens_ = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50)


@given(tokens_, st.binary(min_size=3, max_size=20_000), st.floats(0, 2), st.integers(0, 9))
def test_a_file_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], state: bytes, scale: float, begin: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip"
    activation = Activation((scale,), begin)
    prompt = read_head(written(path, tokens, state, activation), KEY, None)
    assert (prompt.tokens, prompt.activation) == (tokens, activation)
    back, (checkpoint,) = read(prompt, FOREVER)
    assert back.tobytes() == state
    assert (checkpoint.n_tokens, checkpoint.first, checkpoint.last) == (2, 0, 1)
    assert checkpoint.state.tobytes() == state[:3]


@given(st.data())
def test_any_damage_is_detected(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = written(tmp_path_factory.getbasetemp() / "damaged", [1, 2, 3], bytes(range(250)) * 40)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "longer"]))
    if kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[:place] if kind == "cut" else content + b"more" * (kind == "longer"))
    with pytest.raises(BrokenFile):
        read(read_head(path, KEY, None), FOREVER)


def test_swapped_pages_are_detected() -> None:
    a, b = np.zeros(4096, np.uint8), np.ones(4096, np.uint8)
    assert checksum([np.concatenate([a, b])]) != checksum([np.concatenate([b, a])])


def test_a_file_with_another_key_is_rejected(tmp_path: Path) -> None:
    path = written(tmp_path / "a", [1, 2], b"state")
    with pytest.raises(BrokenFile, match="another model"):
        read_head(path, KEY[::-1], None)
    assert name_of(KEY, [1, 2], BASE) != name_of(KEY, [1, 2], Activation((1.0,)))
    assert name_of(KEY, [1, 2], BASE) == name_of(KEY, (1, 2), Activation())
