"""Calculate how a model is split over several devices, as llama.cpp does it. Pure.

The rules of llama.cpp (`load_tensors` in its src/llama-model.cpp):

- The last N layers (`--n-gpu-layers`) are put on the devices in order, the output layer last; the input layer remains
  in host memory. The cumulative sums of the shares are divided by their total, so that each device has an end between
  0 and 1; of n layers, layer i is on the first device whose end is above i / n. A device without a share gets no layer.
- The shares are `--tensor-split`, or else the free memory of each device when the model is loaded.
- A layer's KV cache is on the layer's device. Each device with layers has separate compute buffers.
- Split mode `row` (today only in the SYCL backend) splits the rows of each layer's weights, by the devices' sizes
  unless shares are given, and the KV cache by layers. `tensor` splits weights and KV cache, evenly unless shares are
  given.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from msgspec import Struct
from msgspec.structs import replace

from .memory_amounts import NOTHING, Limit, Space


class Split(Struct, frozen=True):
    """Layers that are split over devices at load time."""

    layers: tuple[int, ...]
    """Bytes of each layer, in the order in which they are put on the devices."""
    scratch: int
    """Bytes of compute buffers on each device that gets layers."""
    devices: tuple[str, ...]

    def divided_by(self, shares: Sequence[float]) -> Space:
        """Return the memory of each device for these shares.

        Devices beyond the last share get nothing. If no share is above 0, the layers are split evenly.
        """
        n, upto = len(self.layers), _sums(self.layers)
        edges = [bisect_left(range(n), end, key=lambda i: i / n) for end in _boundaries(shares, len(self.devices))]
        parts = zip(self.devices, pairwise([0, *edges]), strict=True)
        sizes = {name: upto[end] - upto[start] + self.scratch for name, (start, end) in parts if end > start}
        return Space(devices=sizes)

    def scaled(self, factor: float) -> Split:
        return Split(tuple(round(size * factor) for size in self.layers), round(self.scratch * factor), self.devices)


class Need(Struct, frozen=True):
    """The memory that a model needs when it is loaded."""

    space: Space = NOTHING
    """The part whose place is fixed."""
    splits: tuple[Split, ...] = ()
    """The parts that are split by the devices' free memory at load time, in order: a draft model after its main one."""

    def __add__(self, other: Need) -> Need:
        return Need(self.space + other.space, self.splits + other.splits)

    def placed_within(self, left: Limit) -> Space:
        """Return the memory that it uses if `left` is free at load time.

        If the free memory of a device of a split is unknown, that split is even.
        """
        placed = NOTHING
        for split in self.splits:
            after = (left - placed).devices
            are_counted = all(name in after for name in split.devices)
            placed += split.divided_by([max(0, after[name]) for name in split.devices] if are_counted else [])
        return self.space + placed

    def on_devices(self, names: Sequence[str]) -> Need:
        """Return the need with its splits restricted to the devices that are known to be usable."""
        kept = (tuple(name for name in split.devices if name in names) for split in self.splits)
        pairs = zip(self.splits, kept, strict=True)
        return replace(self, splits=tuple(replace(split, devices=names) for split, names in pairs if names))

    def corrected_by(self, taken: Space, estimated: Space) -> Need:
        """Return the need for the next load, from the memory that was measured and what had been estimated for it."""
        if not self.splits or not estimated.device:
            return Need(taken)
        factor = taken.device / estimated.device
        on_devices = {name: round(size * factor) for name, size in self.space.devices.items()}
        return Need(Space(taken.host, on_devices), tuple(split.scaled(factor) for split in self.splits))


class Offload(Struct, frozen=True):
    """Which parts of a model are on which devices, according to its options."""

    n_layers: int = 0
    """Number of layers, counted from the end; one more than the model has includes the output layer."""
    devices: tuple[str, ...] = ()
    mode: str = "layer"
    shares: tuple[float, ...] = ()
    """Share of each device; empty: by free memory."""
    sizes: tuple[float, ...] = ()
    """Memory size of each device, in any unit."""
    with_kv: bool = True
    pipelines: bool = False
    """True if several batches may pass through the devices in a pipeline when all layers are on devices."""

    def need(self, weights: Sequence[int], kv: Sequence[int], scratch: int) -> Need:
        """Return the device memory for the offloaded layers.

        `weights`, `kv`: bytes of each of these layers. `scratch`: bytes on each device with layers.
        """
        if self.mode == "tensor":
            space = distribute(sum(weights) + sum(kv), self.devices, self.shares)
            return Need(space + Space(devices=dict.fromkeys(space.devices, scratch)))
        by_rows = self.mode == "row"
        rows = distribute(sum(weights), self.devices, self.shares or self.sizes) if by_rows else NOTHING
        layers = tuple(kv) if by_rows else tuple(map(sum, zip(weights, kv, strict=True)))
        split = Split(layers, scratch, self.devices)
        if self.shares or len(self.devices) == 1:
            return Need(rows + split.divided_by(self.shares))
        return Need(rows, (split,))


NO_NEED = Need()
NO_OFFLOAD = Offload()


def distribute(size: int, devices: Sequence[str], shares: Sequence[float]) -> Space:
    """Split `size` bytes over the devices by shares; the sum of the parts is exactly `size`."""
    edges = [round(size * end) for end in _boundaries(shares, len(devices))]
    parts = zip(devices, pairwise([0, *edges]), strict=True)
    return Space(devices={name: end - start for name, (start, end) in parts})


@functools.lru_cache(maxsize=64)  # called again for each set of victims
def _sums(layers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the bytes of the first 0, 1, 2 … layers."""
    return (0, *accumulate(layers))


def _boundaries(shares: Sequence[float], n: int) -> list[float]:
    """Return the end of each of `n` parts, between 0 and 1."""
    given = [*shares, *([0.0] * n)][:n]
    sums = list(accumulate(given if any(given) else [1.0] * n))
    return [end / sums[-1] for end in sums]
