"""Read which devices the system has and how much of their memory is free, and map llama.cpp's device names to them.

It reads kernel files and NVIDIA's driver library (NVML), and loads nothing on a device. Names are llama.cpp's, as far
as they can be known without it: `CUDA0`, `CUDA1`, … in NVML's order (by bus address), `ROCm0`, … in the order of the
kernel's cards, both without the devices that the environment hides. CUDA is assumed to have NVML's order. By default
CUDA puts the fastest device first, which is the same order if all are equal; CUDA_DEVICE_ORDER=PCI_BUS_ID guarantees
it. Once a worker has reported the bus addresses of its devices and which of them it can use, this report counts
(`Devices.register_reported`). An unknown name, such as `Vulkan1`, means the device with that number. Devices that share
the machine's memory (Apple) are not counted separately.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from llama_corral.common.base.worker_reports import DeviceUsage

log = logging.getLogger("corral.router")

DRM = Path("/sys/class/drm")
_ADDRESS = re.compile(r"([0-9a-f]{4})?([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", re.IGNORECASE)


class SystemDevice(Struct, frozen=True):
    """One device and its memory in bytes."""

    name: str
    total: int
    free: int
    address: str = ""
    """PCI bus address in llama.cpp's format; "": unknown."""


class Devices:
    """The devices that existed at the router's start, by name."""

    def __init__(self, devices: Sequence[SystemDevice] = ()) -> None:
        self._devices = tuple(devices)
        self._reported: dict[str, str] = {}
        self._usable: set[str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The default devices of models: all, until a worker has reported which of them its llama.cpp can use."""
        return tuple(name for name in self.totals if self._usable is None or name in self._usable)

    @property
    def totals(self) -> dict[str, int]:
        return {device.name: device.total for device in self._devices}

    def total(self, name: str) -> int:
        return self.totals.get(name, 0)

    def register_reported(self, reported: Sequence[DeviceUsage]) -> None:
        """Record the names, bus addresses and usability of devices, as a worker reports them."""
        for part in reported:
            for device in self._devices:
                if part.address and device.address == part.address:
                    self._reported[part.name] = device.name
        self._usable = (self._usable or set()) | {self.name_of(part.name) for part in reported}

    def name_of(self, name: str) -> str:
        """Return our name of the device that a worker calls `name`, or `name` itself if there is no such device."""
        if name in self._reported or name in self.totals:
            return self._reported.get(name, name)
        number = re.search(r"\d+$", name)
        index = int(number[0]) if number else 0
        return name if index >= len(self._devices) else self._devices[index].name


def unknown_device(number: int) -> str:
    """Return the name of a device that only the user's options mention and the system does not report."""
    return f"GPU{number}"


def read_devices(environ: Mapping[str, str], drm: Path | None = None) -> tuple[SystemDevice, ...]:
    """Return the devices and their free memory. `environ`: what workers inherit."""
    return (*_nvidia(environ), *_amd(environ, drm or DRM))


def visible(ids: Sequence[str], chosen: str | None) -> list[int]:
    """Return the indexes of the devices that a list like CUDA_VISIBLE_DEVICES shows, in its order.

    Its entries are numbers or prefixes of `ids`. None: all devices. As in CUDA, the first invalid entry ends the list.
    """
    if chosen is None:
        return list(range(len(ids)))
    found: list[int] = []
    for word in (word.strip() for word in chosen.split(",")):
        numbers = [
            i for i, known in enumerate(ids) if word == str(i) or (word[:1].isalpha() and known.startswith(word))
        ]
        if len(numbers) != 1 or numbers[0] in found:
            break
        found += numbers
    return found


def _amd(environ: Mapping[str, str], drm: Path) -> Iterator[SystemDevice]:
    cards = list(_amd_cards(drm))
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        ids = [f"GPU-{_text_of(card / 'unique_id')}" for card in cards]
        cards = [cards[i] for i in visible(ids, environ.get(variable))]
    for number, card in enumerate(cards):
        total, used = (int(_text_of(card / f"mem_info_vram_{which}")) for which in ("total", "used"))
        yield SystemDevice(f"ROCm{number}", total, max(0, total - used), _address(card.resolve().name))


def _amd_cards(drm: Path) -> Iterator[Path]:
    """Yield the folders of AMD's cards by number. Other cards, and some integrated GPUs, do not have these files."""
    cards = [path for path in drm.glob("card*") if path.name[4:].isdigit()]
    for card in sorted(cards, key=lambda path: int(path.name[4:])):
        if all(_text_of(card / "device" / f"mem_info_vram_{which}").isdigit() for which in ("total", "used")):
            yield card / "device"


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _nvidia(environ: Mapping[str, str]) -> list[SystemDevice]:
    library = _nvml()
    if library is None:
        return []
    try:
        handles = _nvidia_handles(library, environ.get("CUDA_VISIBLE_DEVICES"))
        return [_nvidia_device(library, number, handle) for number, handle in enumerate(handles)]
    except library.NVMLError as error:
        log.warning("the memory of NVIDIA devices cannot be read: %s", error)
        return []


def _nvidia_handles(library: Any, chosen: str | None) -> list[Any]:
    if chosen is not None and chosen.startswith("MIG-"):  # a part of a device; CUDA uses only the first one
        return [library.nvmlDeviceGetHandleByUUID(chosen.split(",")[0].strip())]
    handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
    ids = (
        [_text(library.nvmlDeviceGetUUID(handle)) for handle in handles] if chosen is not None else [""] * len(handles)
    )
    return [handles[i] for i in visible(ids, chosen)]


def _nvidia_device(library: Any, number: int, handle: Any) -> SystemDevice:
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    try:
        address = _address(_text(library.nvmlDeviceGetPciInfo(handle).busId))
    except library.NVMLError:  # a part of a device has no address
        address = ""
    return SystemDevice(f"CUDA{number}", int(memory.total), int(memory.free), address)


def _address(text: str) -> str:
    """Return a PCI address as llama.cpp and the kernel write it: its domain has four digits; NVML writes eight."""
    found = _ADDRESS.fullmatch(text)
    return found[2].lower() if found else ""


def _text(value: str | bytes) -> str:
    """Return a text of NVML, whose earlier versions return bytes."""
    return value.decode() if isinstance(value, bytes) else value


@functools.cache
def _nvml() -> Any:
    """Return NVIDIA's driver library, initialized, or None on a machine without it."""
    if not Path("/proc/driver/nvidia/version").exists():
        return None
    library = importlib.import_module("pynvml")
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        log.warning("the NVIDIA driver library cannot be initialized: %s", error)
        return None
    return library
