"""The split of layers over devices, compared with llama.cpp's rule; and needs that depend on it."""

from __future__ import annotations

import itertools
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.router.placement.device_split import Need, Split, distribute
from llama_corral.router.placement.memory_amounts import NOTHING, Limit, Space, total

NAMES = ("CUDA0", "CUDA1", "CUDA2")
SHARES = st.lists(st.sampled_from([0, 1, 2, 3, 7]), min_size=1, max_size=3).filter(any)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), SHARES)
def test_each_layer_is_on_the_first_device_that_ends_above_it(layers: list[int], shares: list[int]) -> None:
    ends = [end / sum(shares) for end in itertools.accumulate(shares)]
    expected = NOTHING
    used = set()
    for i, size in enumerate(layers):
        name = NAMES[bisect_right(ends, i / len(layers))]
        expected += Space(devices={name: size})
        used.add(name)
    expected += Space(devices=dict.fromkeys(used, 5))
    assert Split(tuple(layers), 5, NAMES[: len(shares)]).divided_by(shares) == expected


@pytest.mark.parametrize(
    ("shares", "layers"),
    [((1, 1), (17, 16)), ((3, 1), (25, 8)), ((0, 1), (0, 33)), ((1,), (33, 0)), ((), (17, 16)), ((0, 0), (17, 16))],
)
def test_thirty_three_layers_on_two_devices(shares: tuple[float, ...], layers: tuple[int, int]) -> None:
    assert Split((1,) * 33, 0, ("CUDA0", "CUDA1")).divided_by(shares) == Space(
        devices=dict(zip(("CUDA0", "CUDA1"), layers, strict=True))
    )


def test_devices_are_filled_in_their_order() -> None:
    assert Split((1, 2, 4), 0, ("CUDA1", "CUDA0")).divided_by((2, 1)) == Space(devices={"CUDA1": 3, "CUDA0": 4})


@given(st.integers(0, 10**12), SHARES)
def test_all_bytes_are_distributed(size: int, shares: list[int]) -> None:
    space = distribute(size, NAMES[: len(shares)], shares)
    assert space.device == size
    for name, share in zip(NAMES, shares, strict=False):
        assert space.devices.get(name, 0) == pytest.approx(size * share / sum(shares), abs=2)


def test_free_memory_at_load_time_decides_the_split() -> None:
    need = Need(Space(1), (Split((10,) * 10, 0, ("CUDA0", "CUDA1")),))
    assert need.placed_within(Limit(None, {"CUDA0": 60, "CUDA1": 60})) == Space(1, {"CUDA0": 50, "CUDA1": 50})
    assert need.placed_within(Limit(None, {"CUDA0": 30, "CUDA1": 90})) == Space(1, {"CUDA0": 30, "CUDA1": 70})
    assert need.placed_within(Limit(None, {"CUDA0": -5, "CUDA1": 90})) == Space(1, {"CUDA1": 100})
    assert need.placed_within(Limit()) == Space(1, {"CUDA0": 50, "CUDA1": 50}), "without a limit nothing is subtracted"
    assert need.placed_within(Limit(None, {"CUDA1": 9})) == Space(1, {"CUDA0": 50, "CUDA1": 50})


def test_missing_devices_are_left_out() -> None:
    need = Need(Space(1), (Split((10,) * 10, 3, ("CUDA0", "ROCm0")), Split((1,), 0, ("ROCm0",))))
    assert need.on_devices(["CUDA0"]) == Need(Space(1), (Split((10,) * 10, 3, ("CUDA0",)),))
    assert need.on_devices(["CUDA0", "ROCm0"]) == need


def test_a_draft_model_is_split_by_the_memory_left_by_the_main_model() -> None:
    large, small = (Split((size,) * 10, 0, ("CUDA0", "CUDA1")) for size in (10, 2))
    left = Limit(None, {"CUDA0": 100, "CUDA1": 100})
    assert Need(NOTHING, (large, small)).placed_within(left) == Space(devices={"CUDA0": 60, "CUDA1": 60})
    uneven = Split((30, 0), 0, ("CUDA0", "CUDA1"))
    assert Need(NOTHING, (uneven, small)).placed_within(left) == Space(devices={"CUDA0": 30 + 10, "CUDA1": 10})


def test_measured_memory_is_split_again_for_the_next_load() -> None:
    need = Need(Space(1, {"CUDA0": 10}), (Split((10,) * 4, 5, ("CUDA0", "CUDA1")),))
    estimated = need.placed_within(Limit())
    assert estimated == Space(1, {"CUDA0": 35, "CUDA1": 25})
    learned = need.corrected_by(Space(7, {"CUDA0": 70, "CUDA1": 50}), estimated)
    assert learned.placed_within(Limit()) == Space(7, {"CUDA0": 70, "CUDA1": 50})
    assert learned.placed_within(Limit(None, {"CUDA0": 1, "CUDA1": 3})) == Space(7, {"CUDA0": 50, "CUDA1": 70})


def test_without_a_split_the_measured_memory_replaces_the_need() -> None:
    taken = Space(7, {"CUDA1": 9})
    assert Need(Space(1, {"CUDA1": 5})).corrected_by(taken, Space(1, {"CUDA1": 5})) == Need(taken)
    split = Need(Space(1), (Split((1,), 0, ("CUDA0", "CUDA1")),))
    assert split.corrected_by(taken, Space(1)) == Need(taken), "no device was expected"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.lists(st.integers(0, 99), min_size=3, max_size=3))
def test_a_placed_split_has_all_its_bytes(layers: list[int], free: list[int]) -> None:
    split = Split(tuple(layers), 0, NAMES)
    space = Need(NOTHING, (split, split)).placed_within(Limit(None, dict(zip(NAMES, free, strict=True))))
    assert space.device == 2 * sum(layers)
    assert total([space, space]).device == 4 * sum(layers)
