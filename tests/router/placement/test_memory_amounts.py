"""The victims that are evicted so that another model fits: the fewest, and of equally many the first."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.presets.backends import Backend
from llama_corral.presets.layer import ConfigValue
from llama_corral.router.memory.devices import Devices, SystemDevice
from llama_corral.router.memory.requirements import MemoryRequirements
from llama_corral.router.placement.device_split import Need
from llama_corral.router.placement.memory_amounts import Limit, Space, format_bytes, smallest_sufficient_set, total
from router_tools import preset

DEVICES = st.sampled_from(["CUDA0", "CUDA1"])
SPACES = st.builds(Space, st.integers(0, 9), st.dictionaries(DEVICES, st.integers(0, 9)))
LIMITS = st.builds(Limit, st.none() | st.integers(0, 30), st.dictionaries(DEVICES, st.integers(0, 30)))


@given(st.lists(SPACES, max_size=6), SPACES, LIMITS)
def test_victims_free_enough_and_none_is_unnecessary(sizes: list[Space], newcomer: Space, limit: Limit) -> None:
    candidates = list(enumerate(sizes))
    chosen = smallest_sufficient_set(candidates, limit - total(sizes), newcomer.exceeding)
    fits = [
        combination
        for n in range(len(sizes) + 1)
        for combination in itertools.combinations(range(len(sizes)), n)
        if newcomer.fits(limit - total(size for i, size in candidates if i not in combination))
    ]
    if not fits:
        assert chosen is None
    else:
        assert chosen == list(fits[0])


def test_not_every_set_of_many_candidates_is_tried() -> None:
    candidates = [(i, Space(1 + i % 3)) for i in range(60)]
    taken = total(space for _, space in candidates)
    chosen = smallest_sufficient_set(candidates, Limit(taken.host - 30) - taken, Space(20).exceeding)
    assert chosen is not None
    assert 50 <= sum(1 + i % 3 for i in chosen) <= 52


@pytest.mark.parametrize(("size", "text"), [(3 << 29, "1.5 GiB"), (300 << 20, "300 MiB"), (-5, "0 MiB")])
def test_sizes_are_formatted_with_units(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(SPACES, SPACES, LIMITS)
def test_fits_checks_every_memory_that_is_used(newcomer: Space, taken: Space, limit: Limit) -> None:
    after = newcomer + taken
    is_within = (limit.host is None or not newcomer.host or after.host <= limit.host) and all(
        after.devices[name] <= limit.devices.get(name, 1000) for name in newcomer.devices
    )
    assert newcomer.fits(limit - taken) == is_within


def test_exceeding_names_each_memory_that_is_lacking() -> None:
    lacking = Space(2, {"CUDA0": 5, "CUDA1": 7, "CUDA2": 3}).exceeding(Limit(4, {"CUDA0": 9, "CUDA1": -1}))
    assert lacking == Space(0, {"CUDA1": 8})
    assert Space(0, {"CUDA0": 0}).fits(Limit(-5, {"CUDA0": -5})), "what needs nothing fits"


def test_a_space_as_text_names_each_memory() -> None:
    gib = 1 << 30
    assert str(Space(gib)) == "1.0 GiB of memory"
    assert str(Space(0, {"CUDA0": 2 * gib})) == "2.0 GiB on CUDA0"
    both = Space(gib, {"CUDA0": 2 * gib, "CUDA1": gib >> 1})
    assert str(both) == "1.0 GiB of memory, 2.0 GiB on CUDA0 and 512 MiB on CUDA1"
    assert str(Limit(gib, {"CUDA0": 2 * gib})) == "1.0 GiB and 2.0 GiB on CUDA0"
    assert str(Limit()) == "no limit"


# -- what a preset needs -----------------------------------------------------------------------------------------------


def test_a_preset_with_local_files_has_a_need(models: Path) -> None:
    needs = MemoryRequirements({}, Devices())
    small = preset("a", str(models / "tiny-llama.gguf"), options={"ctx_size": 1024})
    large = preset("a", str(models / "tiny-llama.gguf"), options={"ctx_size": 65536})
    draft = preset("a", small.layer["model"].text, options={"ctx_size": 1024, "lora": str(models / "tiny-lora.gguf")})
    first, second, third = (host_of(needs.expected(one)) for one in (small, large, draft))
    assert first < third < second


def host_of(need: Need | None) -> int:
    assert need is not None
    return need.space.host


def test_measured_memory_replaces_the_estimate_until_the_preset_changes(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes((models / "tiny-llama.gguf").read_bytes())
    needs = MemoryRequirements({}, Devices())
    mine = preset("a", str(file), options={"ctx_size": 1024})
    estimated = needs.expected(mine)
    taken = Space(123 << 20, {"CUDA0": 7})
    assert estimated is not None
    learned = needs.record_load(mine, estimated, taken, estimated.space)
    assert needs.expected(mine) == learned == Need(taken)
    changed = preset("a", str(file), options={"ctx_size": 1025})
    assert needs.expected(changed) != learned
    file.write_bytes(file.read_bytes() + b"more")
    assert needs.expected(mine) == estimated


def test_a_model_that_is_not_downloaded_has_an_unknown_need(tmp_path: Path) -> None:
    needs = MemoryRequirements({"HF_HUB_CACHE": str(tmp_path)}, Devices())
    assert needs.expected(preset("a", str(tmp_path / "none.gguf"))) is None
    remote = preset("b")
    layer = {"hf_repo": ConfigValue("some/repo:Q8_0", "a test")}
    assert needs.expected(type(remote)(name="b", source="preset", layer=layer)) is None


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ((30,), {"CUDA0": 20, "CUDA1": 10}),  # by their sizes
        ((5, 9), {"CUDA0": 5, "CUDA1": 9}),
        ((0, 9), {"CUDA1": 9}),
        ((1, 2, 3), {"CUDA0": 1, "CUDA1": 2, "GPU2": 3}),
    ],
)
def test_another_program_uses_the_device_memory_of_its_preset(given: tuple[int, ...], devices: dict[str, int]) -> None:
    needs = MemoryRequirements({}, Devices([SystemDevice("CUDA0", 200, 0), SystemDevice("CUDA1", 100, 0)]))
    program = preset("p", backend=Backend(("serve",), host_bytes=7, device_bytes=given))
    assert needs.expected(program) == Need(Space(7, devices))
