"""The memory by device from llama.cpp's log, and the names of devices."""

from __future__ import annotations

from llama_corral.worker.engine.llama.devices import address_of, device_names, usual_devices
from llama_corral.worker.engine.llama.memory_log import Allocations


def _noted(*lines: str) -> Allocations:
    allocations = Allocations()
    for line in lines:
        allocations.note(line)
    return allocations


MIB = 1 << 20


def test_each_buffer_is_counted_on_its_device() -> None:
    noted = _noted(
        "load_tensors:   CPU_Mapped model buffer size =   100.00 MiB",
        "load_tensors:        CUDA0 model buffer size =  2000.50 MiB",
        "load_tensors:       CUDA10 model buffer size =  1000.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =   256.00 MiB",
        "llama_memory_recurrent:      CUDA10 RS buffer size =     1.00 MiB",
        "llama_context:  CUDA_Host  output buffer size =     4.00 MiB",
        "sched_reserve:      CUDA1 compute buffer size =    10.00 MiB",
        "sched_reserve:  CUDA_Host compute buffer size =     2.00 MiB",
    )
    assert noted.host_bytes == 106 * MIB
    assert noted.device_bytes(["CUDA0", "CUDA1", "CUDA10"], ["CUDA0"]) == {
        "CUDA0": int(2256.5 * MIB),
        "CUDA10": 1001 * MIB,
        "CUDA1": 10 * MIB,
    }


def test_a_mapped_buffer_is_counted_on_its_device() -> None:
    noted = _noted("load_tensors:  MTL0_Mapped model buffer size =     3.00 MiB")
    assert noted.device_bytes(["MTL0"], ["MTL0"]) == {"MTL0": 3 * MIB}


def test_a_buffer_over_several_devices_is_counted_on_each() -> None:
    tensors = _noted("load_tensors: Meta() model buffer size =     3.00 MiB")
    three = ["CUDA0", "CUDA1", "CUDA2"]
    each = {"CUDA0": 3 * MIB, "CUDA2": 3 * MIB}
    assert tensors.device_bytes(three, ["CUDA0", "CUDA2"]) == each, "the largest part is told"
    rows = _noted("load_tensors:   SYCL_Split model buffer size =     4.00 MiB")
    assert rows.device_bytes(["SYCL0", "SYCL1"], ["SYCL0"]) == {"SYCL0": 2 * MIB, "SYCL1": 2 * MIB}
    assert rows.device_bytes([], []) == {"SYCL_Split": 4 * MIB}


def test_cpus_are_not_listed_as_devices() -> None:
    assert "CPU" not in device_names()
    assert set(usual_devices()) <= set(device_names())
    assert address_of("CPU") == ""
