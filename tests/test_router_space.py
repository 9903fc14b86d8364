"""Which models leave so that another fits: the fewest, and of equally many those that come first."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.presets.given import Given
from llama_corral.router.needs import Needs
from llama_corral.router.space import Limit, Space, fewest, readable, total
from router_tools import preset

SPACES = st.builds(Space, st.integers(0, 9), st.integers(0, 9))
LIMITS = st.builds(Limit, st.none() | st.integers(0, 30), st.none() | st.integers(0, 30))


@given(st.lists(SPACES, max_size=6), SPACES, LIMITS)
def test_what_is_left_fits_and_nobody_leaves_in_vain(sizes: list[Space], others: Space, limit: Limit) -> None:
    candidates = list(enumerate(sizes))
    chosen = fewest(candidates, total(sizes) + others, limit)
    fits = [
        combination
        for n in range(len(sizes) + 1)
        for combination in itertools.combinations(range(len(sizes)), n)
        if (total(size for i, size in candidates if i not in combination) + others).fits(limit)
    ]
    if not fits:
        assert chosen is None
    else:
        assert chosen == list(fits[0])


def test_many_candidates_are_not_tried_in_every_set() -> None:
    candidates = [(i, Space(1 + i % 3)) for i in range(60)]
    taken = total(space for _, space in candidates)
    chosen = fewest(candidates, taken, Limit(taken.host - 50))
    assert chosen is not None
    assert 50 <= sum(1 + i % 3 for i in chosen) <= 52


@pytest.mark.parametrize(("size", "text"), [(3 << 29, "1.5 GiB"), (300 << 20, "300 MiB"), (-5, "0 MiB")])
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert readable(size) == text


def test_a_need_names_both_memories() -> None:
    assert str(Space(1 << 30, 2 << 30)) == "1.0 GiB and 2.0 GiB of device memory"
    assert str(Space(0, 2 << 30)) == "2.0 GiB of device memory"
    assert str(Limit()) == "no limit"


# -- what a preset needs -----------------------------------------------------------------------------------------------


def test_a_preset_on_this_machine_has_a_need(models: Path) -> None:
    needs = Needs({}, has_devices=False)
    small = preset("a", str(models / "tiny-llama.gguf"), options={"ctx_size": 1024})
    large = preset("a", str(models / "tiny-llama.gguf"), options={"ctx_size": 65536})
    draft = preset("a", small.layer["model"].text, options={"ctx_size": 1024, "lora": str(models / "tiny-lora.gguf")})
    first, second, third = needs.expected(small), needs.expected(large), needs.expected(draft)
    assert first
    assert second
    assert third
    assert first.host < third.host < second.host


def test_what_was_measured_replaces_the_estimate_until_the_preset_changes(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes((models / "tiny-llama.gguf").read_bytes())
    needs = Needs({}, has_devices=False)
    mine = preset("a", str(file), options={"ctx_size": 1024})
    estimated = needs.expected(mine)
    needs.learn(mine, Space(123 << 20, 7))
    learned = needs.expected(mine)
    assert learned
    assert learned.host > 123 << 20
    assert learned.device == 7
    changed = preset("a", str(file), options={"ctx_size": 1025})
    assert needs.expected(changed) != learned
    file.write_bytes(file.read_bytes() + b"more")
    assert needs.expected(mine) == estimated


def test_a_model_that_is_not_here_has_an_unknown_need(tmp_path: Path) -> None:
    needs = Needs({"HF_HUB_CACHE": str(tmp_path)}, has_devices=False)
    assert needs.expected(preset("a", str(tmp_path / "none.gguf"))) is None
    remote = preset("b")
    layer = {"hf_repo": Given("some/repo:Q8_0", "a test")}
    assert needs.expected(type(remote)(name="b", source="preset", layer=layer)) is None
