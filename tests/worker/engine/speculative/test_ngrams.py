"""Drafts from the text itself: each kind's drafts compared with a simple search, and the files of n-gram counts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.batching.slots import Slot
from llama_corral.worker.engine.llama.errors import LoadError
from llama_corral.worker.engine.llama.options import NgramSizes
from llama_corral.worker.engine.speculative.drafter import Drafter, DraftRequest
from llama_corral.worker.engine.speculative.ngram.cache import NgramCache
from llama_corral.worker.engine.speculative.ngram.files import Table, load, merge, save
from llama_corral.worker.engine.speculative.ngram.index import NgramIndex, Rolling, hash_of, hashes
from llama_corral.worker.engine.speculative.ngram.map import NgramMap
from llama_corral.worker.engine.speculative.ngram.mod import NgramMod
from llama_corral.worker.engine.speculative.ngram.simple import NgramSimple
from llama_corral.worker.engine.speculative.options import simulated

texts = st.lists(st.integers(0, 3), max_size=200)
SIZES = NgramSizes(2, 4, 1)


def proposed(drafter: Drafter, history: Sequence[int], most: int = 99, step: int = 1) -> list[list[int]]:
    """Return the drafts for an answer that grows by `step` tokens at a time."""
    slot, grown, drafts = Slot(0, 4096), list[int](), list[list[int]]()
    drafter.begin(slot, grown)
    for token in history:
        grown.append(token)
        if len(grown) % step == 0:
            drafts += drafter.draft([DraftRequest(slot, grown, most)])
    return drafts


@given(texts, st.integers(1, 5))
def test_a_rolling_hash_equals_the_hash_of_each_window(text: list[int], n: int) -> None:
    expected = [hash_of(text[i : i + n]) for i in range(len(text) - n + 1)]
    assert hashes(np.array(text, np.uint64), n).tolist() == expected
    if expected:
        rolling = Rolling(text[:n])
        for out, into, value in zip(text, text[n:], expected[1:], strict=False):
            rolling.move(out, into)
            assert rolling.value == value


@given(texts, st.integers(1, 4), st.integers(1, 4), st.data())
def test_an_index_finds_what_a_search_finds(text: list[int], n: int, n_follow: int, data: st.DataObject) -> None:
    index, grown = NgramIndex(n, n_follow), list[int]()
    while len(grown) < len(text):
        grown += text[len(grown) : len(grown) + data.draw(st.sampled_from([1, 1, 3, 150]))]
        index.update(grown)
        places = [p for p in range(len(grown) - n - n_follow + 1) if grown[p : p + n] == grown[-n:]]
        expected = places[::-1] if len(grown) >= n else []
        assert list(index.places(grown)) == expected


@given(texts, st.integers(1, 9))
def test_simple_drafts_the_latest_continuation(text: list[int], most: int) -> None:
    for end, draft in enumerate(proposed(NgramSimple(SIZES), text, most), 1):
        seen = text[:end]
        places = [p for p in range(len(seen) - 3) if seen[p : p + 2] == seen[-2:]]
        begin = places[-1] + 2 if places else end
        assert draft == seen[begin : begin + min(4, most)]


def test_a_map_drafts_at_most_the_accepted_length() -> None:
    slot, history = Slot(0, 4096), [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    drafter = NgramMap(SIZES, several=False)
    drafter.begin(slot, history)
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[3, 4, 5, 6]]
    drafter.accept(slot, 4, 2)
    history += [3, 4, 9, 9, 1, 2]
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[3, 4]]
    drafter.accept(slot, 2, 2)
    assert drafter.draft([DraftRequest(slot, history, 1)]) == [[3]]
    drafter.accept(slot, 1, 1)  # a truncated draft that was accepted completely does not reduce the length
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[3, 4]]
    drafter.accept(slot, 2, 0)
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[]]


def test_a_map_of_values_needs_a_clear_majority() -> None:
    slot, drafter = Slot(0, 4096), NgramMap(SIZES, several=True)
    history = [1, 2, 5, 5, 5, 5, 1, 2, 6, 6, 6, 6, 1, 2]
    drafter.begin(slot, history)
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[]]
    history += [6, 6, 6, 6, 9, 1, 2]
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[6, 6, 6, 6]]


def test_a_map_drafts_after_the_minimum_number_of_hits() -> None:
    slot, history = Slot(0, 4096), [1, 2, 3, 4, 5, 6, 1, 2]
    drafter = NgramMap(NgramSizes(2, 4, 2), several=True)
    drafter.begin(slot, history)
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[]]
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[3, 4, 5, 6]]


def test_a_table_serves_other_requests_and_is_cleared_after_poor_drafts() -> None:
    drafter = NgramMod(3, 2, 5)
    first, second, text = Slot(0, 4096), Slot(1, 4096), [7, 8, 9, 10, 11, 12, 13, 14]
    drafter.begin(first, [*text, *text])
    asked = [7, 8, 9]
    drafter.begin(second, asked)
    assert drafter.draft([DraftRequest(second, asked, 99)]) == [[10, 11, 12, 13, 14]]
    assert drafter.draft([DraftRequest(second, asked, 2)]) == [[10, 11]]
    for _ in range(5):
        drafter.accept(second, 5, 1)
    assert drafter.draft([DraftRequest(second, asked, 99)]) == [[]]


def test_a_table_gives_no_draft_below_the_minimum_length() -> None:
    drafter, slot, text = NgramMod(3, 4, 9), Slot(0, 4096), [1, 2, 3, 4, 5, 6]
    drafter.begin(slot, [*text])
    asked = [2, 3, 4]
    drafter.begin(Slot(1, 4096), asked)
    assert drafter.draft([DraftRequest(Slot(1, 4096), asked, 99)]) == [[]]


@given(texts)
def test_a_text_is_recorded_equally_at_once_and_in_parts(text: list[int]) -> None:
    at_once, bit_by_bit = NgramMod(2, 1, 5), NgramMod(2, 1, 5)
    slot = Slot(0, 4096)
    at_once.begin(slot, list(text))
    proposed(bit_by_bit, text)
    known = bit_by_bit._progress[0].learned_to
    for entry in range(min(known, len(text) - 2)):
        place = hash_of(text[entry : entry + 2]) % len(at_once._table)
        assert (at_once._table[place] >= 0) == (bit_by_bit._table[place] >= 0)


def test_the_most_frequent_token_is_drafted() -> None:
    slot, history = Slot(0, 4096), [*[1, 2, 3, 4] * 4, 1]
    drafter = NgramCache(None, None)
    drafter.begin(slot, history)
    assert drafter.draft([DraftRequest(slot, history, 99)]) == [[2, 3, 4, 1, 2, 3, 4, 1]]
    assert drafter.draft([DraftRequest(slot, history, 3)]) == [[2, 3, 4]]
    undecided = [1, 2, 1, 3, 1, 4, 1]
    drafter.begin(slot, undecided)
    assert drafter.draft([DraftRequest(slot, undecided, 99)])[0][:1] != [2]


tables = st.dictionaries(
    st.lists(st.integers(0, 99), min_size=1, max_size=4).map(tuple),
    st.dictionaries(st.integers(0, 99), st.integers(1, 999), min_size=1, max_size=4),
)


@given(tables, tables)
def test_saved_counts_are_loaded_and_merged(tmp_path_factory: pytest.TempPathFactory, one: Table, other: Table) -> None:
    path = tmp_path_factory.mktemp("lookup") / "cache"
    save(one, path)
    assert load(path) == one
    merged: Table = {}
    merge(merged, one)
    merge(merged, other)
    assert sum(sum(c.values()) for c in merged.values()) == sum(
        sum(c.values()) for t in (one, other) for c in t.values()
    )


def test_the_file_format_is_that_of_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(struct.pack("=4ii2i2i", 5, 6, -1, -1, 2, 7, 3, 8, 1))
    assert load(tmp_path / "cache") == {(5, 6): {7: 3, 8: 1}}
    save({(5, 6): {7: 3, 8: 1}}, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "cache").read_bytes()


@pytest.mark.parametrize("words", [(1, 2, 3), (1, 2, 3, 4, 0), (1, 2, 3, 4, 2, 5, 5), (1, 2, 3, 4, 1, 5, 0)])
def test_a_broken_file_is_refused(tmp_path: Path, words: tuple[int, ...]) -> None:
    (tmp_path / "cache").write_bytes(struct.pack(f"={len(words)}i", *words))
    with pytest.raises(LoadError, match="failed to read lookup cache"):
        load(tmp_path / "cache")


def test_counts_of_requests_are_saved(tmp_path: Path) -> None:
    path, slot = tmp_path / "dynamic", Slot(0, 4096)
    history = [1, 2, 3, 4] * 6
    first = NgramCache(None, path)
    first.begin(slot, history)
    first.draft([DraftRequest(slot, history, 99)])
    first.close()
    second, asked = NgramCache(None, path), [9, 1, 2]
    second.begin(slot, asked)
    assert second.draft([DraftRequest(slot, asked, 4)]) == [[3, 4, 1, 2]]
    third = NgramCache(path, None)
    third.begin(slot, asked)
    assert third.draft([DraftRequest(slot, asked, 4)]) == [[3, 4, 1, 2]]


@given(st.integers(1, 16), st.floats(0, 1))
def test_simulated_rates_give_the_requested_length(n_max: int, part: float) -> None:
    length = 1 + part * n_max
    reached, chance = 1.0, 1.0
    for conditional in simulated(n_max, length, ()):
        chance *= conditional
        reached += chance
    assert reached == pytest.approx(length, abs=1e-4)
