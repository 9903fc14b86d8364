"""Test what the system reports about devices, which device a llama.cpp name means, and the budgets of devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.base.worker_reports import DeviceUsage, MemoryUsage
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.options.values import AUTO_LIMIT, NO_LIMIT
from llama_corral.router.memory import devices
from llama_corral.router.memory.budget import MemoryBudget, WorkerMemory, budgets_of, memory_budget_of
from llama_corral.router.memory.devices import Devices, SystemDevice, read_devices, visible
from llama_corral.router.memory.estimate import PROCESS_BYTES
from llama_corral.router.memory.requirements import MemoryRequirements
from llama_corral.router.placement.memory_amounts import Limit, Space

GIB = 1 << 30
FIRST, SECOND = (
    SystemDevice("CUDA0", 24 * GIB, 20 * GIB, "0000:01:00.0"),
    SystemDevice("CUDA1", 16 * GIB, 9 * GIB, "0000:0a:00.0"),
)


# -- readings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        (" 1 ", [1]),
        ("1,-1,0", [1]),
        ("1,7,0", [1]),
        ("GPU-b", []),  # ambiguous: a prefix of two ids
        ("GPU-bb", [1]),
        ("GPU-bc,GPU-aa", [2, 0]),
        ("0,0", [0]),
        ("GPU-x", []),
    ],
)
def test_a_list_of_visible_devices_ends_at_its_first_invalid_entry(chosen: str | None, shown: list[int]) -> None:
    assert visible(["GPU-aa-1", "GPU-bb-1", "GPU-bc-1"], chosen) == shown


class FakeNvml:
    """A fake NVML with devices of the given sizes in bytes."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, *sizes: int, is_old: bool = False, fails: bool = False) -> None:
        self._sizes = sizes
        self._text: Callable[[str], str | bytes] = str.encode if is_old else str
        self._fails = fails

    def nvmlDeviceGetCount(self) -> int:
        return len(self._sizes)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        return self._text(f"GPU-{handle}ab")

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return SimpleNamespace(busId=self._text(f"00000000:0{handle + 1:X}:00.0"))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if self._fails:
            raise self.NVMLError("not supported")
        return SimpleNamespace(total=self._sizes[handle], free=self._sizes[handle] - 100)


@pytest.mark.parametrize("is_old", [False, True])
def test_nvidia_devices_are_named_as_cuda_shows_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_old: bool
) -> None:
    monkeypatch.setattr(devices, "_nvml", lambda: FakeNvml(1000, 2000, 3000, is_old=is_old))
    everything = [SystemDevice(f"CUDA{i}", 1000 * (i + 1), 1000 * i + 900, f"0000:0{i + 1}:00.0") for i in range(3)]
    assert read_devices({}, tmp_path) == tuple(everything)
    shown = read_devices({"CUDA_VISIBLE_DEVICES": "2,GPU-0"}, tmp_path)
    assert [(device.name, device.total, device.address) for device in shown] == [
        ("CUDA0", 3000, "0000:03:00.0"),
        ("CUDA1", 1000, "0000:01:00.0"),
    ]
    assert read_devices({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == ()


def test_a_driver_that_fails_means_no_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_nvml", lambda: FakeNvml(1000, fails=True))
    assert read_devices({}, tmp_path) == ()


def test_the_memory_of_amd_devices_is_read_from_files(tmp_path: Path) -> None:
    for number, (card, used) in enumerate((("card10", 300), ("card2", 100), ("card1-DP-1", 5))):
        place = tmp_path / "pci" / f"0000:0{number}:00.0"
        place.mkdir(parents=True)
        (tmp_path / card).mkdir()
        (tmp_path / card / "device").symlink_to(place)
        (place / "mem_info_vram_total").write_text("1000\n")
        (place / "mem_info_vram_used").write_text(f"{used}\n")
        (place / "unique_id").write_text(f"{number}f\n")
    (tmp_path / "card3" / "device").mkdir(parents=True)  # an integrated GPU
    both = (SystemDevice("ROCm0", 1000, 900, "0000:01:00.0"), SystemDevice("ROCm1", 1000, 700, "0000:00:00.0"))
    assert read_devices({}, tmp_path) == both
    assert [device.free for device in read_devices({"HIP_VISIBLE_DEVICES": "1"}, tmp_path)] == [700]
    assert [device.free for device in read_devices({"ROCR_VISIBLE_DEVICES": "GPU-0f,0"}, tmp_path)] == [700, 900]
    assert read_devices({}, tmp_path / "nothing") == ()


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_name_means_the_device_with_that_name_or_number() -> None:
    known = Devices([FIRST, SECOND])
    names = {"CUDA1": "CUDA1", "Vulkan0": "CUDA0", "Vulkan1": "CUDA1", "MTL": "CUDA0", "Vulkan7": "Vulkan7"}
    assert {name: known.name_of(name) for name in names} == names
    assert Devices().name_of("CUDA0") == "CUDA0"


def test_a_bus_address_takes_precedence_over_a_name() -> None:
    known = Devices([FIRST, SECOND])
    known.register_reported([DeviceUsage("CUDA0", 1, SECOND.address), DeviceUsage("CUDA1", 1, FIRST.address)])
    known.register_reported([DeviceUsage("Vulkan0", 1, "0000:ff:00.0")])
    assert [known.name_of(name) for name in ("CUDA0", "CUDA1", "Vulkan0")] == ["CUDA1", "CUDA0", "CUDA0"]


def test_devices_that_workers_report_as_unusable_get_no_models() -> None:
    known = Devices([FIRST, SECOND, SystemDevice("ROCm0", GIB, GIB)])
    assert known.names == ("CUDA0", "CUDA1", "ROCm0")
    known.register_reported([DeviceUsage("CUDA0", 7), DeviceUsage("CUDA1", 0)])
    assert known.names == ("CUDA0", "CUDA1")
    none = Devices([FIRST])
    memory_budget = MemoryBudget(MemoryRequirements({}, none), none, host=NO_LIMIT, budgets={})
    memory_budget.usage_of(MemoryUsage(5))
    assert none.names == ("CUDA0",), "another program does not tell"
    memory_budget.usage_of(MemoryUsage(5, ()))
    assert none.names == (), "llama.cpp was built without"


# -- budgets -----------------------------------------------------------------------------------------------------------


def _room(budgets: dict[str, int], *free: SystemDevice, margin: int = 0) -> MemoryBudget:
    known = Devices([FIRST, SECOND])
    return MemoryBudget(
        MemoryRequirements({}, known), known, host=NO_LIMIT, budgets=budgets, margin=margin, read_devices=lambda: free
    )


def test_a_devices_limit_is_free_memory_plus_our_workers_minus_the_margin() -> None:
    memory_budget = _room({"CUDA0": AUTO_LIMIT, "CUDA1": AUTO_LIMIT}, FIRST, SECOND, margin=GIB)
    assert memory_budget.limit([]) == Limit(None, {"CUDA0": 19 * GIB, "CUDA1": 8 * GIB})
    workers = [WorkerMemory(None, Space(5, {"CUDA1": 7 * GIB}))]
    assert memory_budget.limit(workers) == Limit(None, {"CUDA0": 19 * GIB, "CUDA1": 15 * GIB})
    full = _room({"CUDA0": AUTO_LIMIT}, SystemDevice("CUDA0", GIB, 5), margin=GIB)
    assert full.limit([]) == Limit(None, {"CUDA0": 0})
    assert _room({"CUDA0": AUTO_LIMIT, "CUDA1": AUTO_LIMIT}, FIRST).limit([]).devices.keys() == {"CUDA0"}


def test_after_an_exit_a_budget_counts_only_as_far_as_memory_is_free() -> None:
    memory_budget = _room({"CUDA0": 22 * GIB, "CUDA1": NO_LIMIT}, FIRST, SECOND)
    assert memory_budget.limit([]) == Limit(None, {"CUDA0": 22 * GIB})
    assert memory_budget.limit([], is_settling=True) == Limit(None, {"CUDA0": 20 * GIB})
    workers = [WorkerMemory(None, Space(devices={"CUDA0": 3 * GIB}))]
    assert memory_budget.limit(workers, is_settling=True) == Limit(None, {"CUDA0": 22 * GIB})


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        ("auto", {"CUDA0": AUTO_LIMIT, "CUDA1": AUTO_LIMIT}),
        ("off", {"CUDA0": NO_LIMIT, "CUDA1": NO_LIMIT}),
        ("20G", {"CUDA0": 12 * GIB, "CUDA1": 8 * GIB}),
        ("24G,16G", {"CUDA0": 24 * GIB, "CUDA1": 16 * GIB}),
        ("off, 5G", {"CUDA0": NO_LIMIT, "CUDA1": 5 * GIB}),
    ],
)
def test_one_number_is_for_all_devices_and_several_for_each(text: str, budgets: dict[str, int]) -> None:
    limits = Settings.of(models_device_memory=text).router.models_device_memory
    assert budgets_of(limits, [FIRST, SECOND]) == budgets


def test_devices_without_a_value_are_limited_by_free_memory() -> None:
    third = SystemDevice("CUDA2", GIB, GIB)
    assert budgets_of([5, NO_LIMIT], [FIRST, SECOND, third]) == {"CUDA0": 5, "CUDA1": NO_LIMIT, "CUDA2": AUTO_LIMIT}
    assert budgets_of([5], [FIRST]) == {"CUDA0": 5}
    with pytest.raises(ConfigError, match="3 values, but only 2 devices were found"):
        budgets_of([1, 2, 3], [FIRST, SECOND])


def test_a_device_unknown_to_the_system_is_counted_by_reports_of_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "DRM", tmp_path)
    monkeypatch.setattr(devices, "_nvml", lambda: None)
    memory_budget = memory_budget_of(Settings.of(models_memory="off", models_device_memory="4G"), {})
    taken = memory_budget.usage_of(MemoryUsage(5, (DeviceUsage("Vulkan0", 7),)))
    assert taken == Space(5 + PROCESS_BYTES, {"GPU0": 7})
    assert memory_budget.limit([]) == Limit(None, {"GPU0": 4 * GIB})
