"""The devices of this llama.cpp build, by name. Used only while a model loads, or for `--list-devices`."""

from __future__ import annotations

import ctypes
from typing import Any

from msgspec import Struct

from .errors import LoadError
from .llama import function_of, lib, start_backends

_CPU, _GPU, _INTEGRATED = 0, 1, 2  # ggml_backend_dev_type


_pointer = ctypes.c_void_p
_size_p = ctypes.POINTER(ctypes.c_size_t)
_count = function_of(lib, "ggml_backend_dev_count", ctypes.c_size_t)
_get = function_of(lib, "ggml_backend_dev_get", _pointer, ctypes.c_size_t)
_name = function_of(lib, "ggml_backend_dev_name", ctypes.c_char_p, _pointer)
_description = function_of(lib, "ggml_backend_dev_description", ctypes.c_char_p, _pointer)
_type = function_of(lib, "ggml_backend_dev_type", ctypes.c_int, _pointer)
_memory = function_of(lib, "ggml_backend_dev_memory", None, _pointer, _size_p, _size_p)
_properties = function_of(lib, "ggml_backend_dev_get_props", None, _pointer, _pointer)
_buffer_type = function_of(lib, "ggml_backend_dev_buffer_type", _pointer, _pointer)
_buffer_type_name = function_of(lib, "ggml_backend_buft_name", ctypes.c_char_p, _pointer)


class _Properties(ctypes.Structure):
    """The C struct ggml_backend_dev_props."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", ctypes.c_bool * 16),  # current llama.cpp writes five; the rest is reserve
    )


class BackendDevice(Struct, frozen=True):
    name: str
    description: str
    is_cpu: bool
    free_bytes: int
    total_bytes: int
    pointer: int


def list_devices() -> list[BackendDevice]:
    start_backends()
    return [_device(_get(i)) for i in range(_count())]


def describe_devices() -> str:
    """Return the list of devices for offloading as a text, in llama-server's format."""
    lines = [
        f"  {device.name}: {device.description} ({device.total_bytes >> 20} MiB, {device.free_bytes >> 20} MiB free)"
        for device in list_devices()
        if not device.is_cpu
    ]
    return "\n".join(["Available devices:", *(lines or ["  (none)"])])


def _device(pointer: int) -> BackendDevice:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _memory(pointer, ctypes.byref(free), ctypes.byref(total))
    return BackendDevice(
        _name(pointer).decode(),
        _description(pointer).decode(),
        _type(pointer) == _CPU,
        free.value,
        total.value,
        pointer,
    )


def device_names() -> list[str]:
    """Return the names of all GPUs. Unlike a query of their memory this does not initialise the devices."""
    return [_name(pointer).decode() for pointer in _pointers(_GPU, _INTEGRATED)]


def usual_devices() -> list[str]:
    """Return the names of the devices used by default: integrated GPUs only if there are no others."""
    return [_name(pointer).decode() for pointer in _pointers(_GPU) or _pointers(_INTEGRATED)]


def address_of(name: str) -> str:
    """Return the PCI bus address of a device; "" if it is unknown."""
    for pointer in _pointers(_GPU, _INTEGRATED):
        if _name(pointer).decode() == name:
            properties = _Properties()
            _properties(pointer, ctypes.byref(properties))
            return (properties.device_id or b"").decode()
    return ""


def _pointers(*types: int) -> list[int]:
    start_backends()
    return [pointer for pointer in (_get(i) for i in range(_count())) if _type(pointer) in types]


def choose_devices(names: tuple[str, ...]) -> Any:
    """Return the NULL-terminated array for `llama_model_params.devices`. None: llama.cpp chooses. Raises LoadError."""
    if not names:
        return None
    if names == ("none",):
        return (_pointer * 1)(None)
    return (_pointer * (len(names) + 1))(*(find_device(name, "--device") for name in names), None)


def find_device(name: str, option: str) -> int:
    offered = {device.name: device.pointer for device in list_devices() if not device.is_cpu}
    if name not in offered:
        known = ", ".join(offered) or "none (this build or this machine supports only the CPU)"
        raise LoadError(f"{option}: no device {name!r}; known: {known}")
    return offered[name]


def offloaded_share(n_gpu_layers: int, n_layers: int, names: tuple[str, ...]) -> float:
    """Estimate the fraction of a model's weights that is in GPU memory. A negative `n_gpu_layers` means all layers."""
    if names == ("none",) or all(device.is_cpu for device in list_devices()):
        return 0.0
    return 1.0 if n_gpu_layers < 0 else min(1.0, n_gpu_layers / (n_layers + 1))


def buffer_types() -> dict[str, int]:
    types = (_buffer_type(device.pointer) for device in list_devices())
    return {_buffer_type_name(pointer).decode(): pointer for pointer in types if pointer}
