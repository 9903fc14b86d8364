"""What was read from files is kept until a file changes, and the memory for it is bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from file_edits import overwrite, touch
from llama_corral.common.hub.file_cache import FileCache, version_of
from llama_corral.common.hub.gguf_header import MAX_HEADERS
from llama_corral.common.hub.model_card import read_brief_card, read_card


@pytest.fixture
def file(models: Path, tmp_path: Path) -> Path:
    path = tmp_path / "0.gguf"
    path.write_bytes((models / "tiny-llama.gguf").read_bytes())
    return path


def replace(path: Path) -> None:
    """Replace a file by another one of the same size and time."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(before.st_size))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [touch, replace, lambda path: path.write_bytes(b"longer")])
def test_a_file_is_read_again_only_if_it_has_changed(tmp_path: Path, change: object) -> None:
    reads: list[str] = []
    cache = FileCache(lambda path: reads.append(path.name) or len(reads))  # type: ignore[func-returns-value]
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    assert cache.peek(version_of(path)) is None
    assert [cache.get(version_of(path)) for _ in range(3)] == [1, 1, 1]
    assert callable(change)
    change(path)
    assert cache.peek(version_of(path)) is None
    assert (cache.get(version_of(path)), len(cache)) == (2, 1), "an old version takes no memory"


def test_the_files_that_were_not_used_for_the_longest_time_are_dropped(tmp_path: Path) -> None:
    cache = FileCache(lambda path: path.name, max_files=2)
    versions = []
    for name in "abc":
        (tmp_path / name).touch()
        versions.append(version_of(tmp_path / name))
    a, b, c = versions
    for version in (a, b, a, c):
        cache.get(version)
    assert [cache.peek(version) for version in versions] == ["a", None, "c"]


def test_cards_of_more_files_than_headers_fit_in_memory_are_read_once(file: Path, tmp_path: Path) -> None:
    files = [file, *(tmp_path / f"{number}.gguf" for number in range(1, 10 * MAX_HEADERS))]
    for path in files[1:]:
        os.link(file, path)
    cards = [read_brief_card(path) for path in files]
    overwrite(file)
    assert [read_brief_card(path) for path in files] == cards
    assert {card.architecture for card in cards} == {"llama"}
    touch(file)
    assert {read_brief_card(path).architecture for path in files} == {""}


def test_a_brief_card_is_the_card_without_the_long_texts(file: Path) -> None:
    brief, card = read_brief_card(file), read_card(file)
    assert (brief.template, dict(brief.metadata)) == ("", {})
    assert "messages" in card.template
    for field in ("path", "size", "modified", "digest", "architecture", "n_params", "quantization", "n_ctx_train"):
        assert getattr(brief, field) == getattr(card, field)


def test_a_card_without_reading_has_what_the_file_system_knows(file: Path) -> None:
    unread = read_brief_card(file, may_read=False)
    assert (unread.is_read, unread.size, unread.architecture) == (False, file.stat().st_size, "")
    assert unread.digest == read_brief_card(file).digest
    assert read_brief_card(file, may_read=False).is_read


def test_a_broken_file_is_reported_once_for_each_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    assert [read_brief_card(path).size for _ in range(3)] == [0, 0, 0]
    assert len(caplog.records) == 1
    touch(path)
    read_brief_card(path)
    assert len(caplog.records) == 2


def test_a_missing_file_is_reported_in_plain_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "none.gguf"
    assert (read_brief_card(path).size, read_card(path).size) == (0, 0)
    assert {record.message for record in caplog.records} == {f"cannot read a model's header: {path}: no such file"}
