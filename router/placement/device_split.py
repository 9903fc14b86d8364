"""How a model is shared out over several devices, as llama.cpp does it; pure.

What llama.cpp does (`load_tensors` of its src/llama-model.cpp):

- Layers go to the devices one after the other, from the first of the last N on (`--n-gpu-layers`), the output last;
  the input stays with the machine. Shares are summed up and divided by their sum, so that each device has an end
  between 0 and 1; of n layers number i goes to the first device whose end is above i / n. A device that is not given a
  share gets none.
- The shares are `--tensor-split`, or else what each device has free when the model is loaded.
- A layer's KV cache is where the layer is. Every device that has layers gets scratch buffers of its own.
- Split mode `row` (of one backend, SYCL, today) shares out the rows of each layer's weights, by the devices' sizes
  unless shares are given, and has the KV cache by layers; `tensor` shares out weights and KV cache, evenly unless
  shares are given.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from .memory_amounts import NOTHING, Limit, Space


@dataclass(frozen=True, slots=True)
class Split:
    """Layers that are shared out over devices when they are loaded."""

    layers: tuple[int, ...]
    """Bytes of each, in the order in which they go."""
    scratch: int
    """Bytes, on each device that gets layers."""
    devices: tuple[str, ...]

    def divided_by(self, shares: Sequence[float]) -> Space:
        """Fewer shares than devices: the others get none. None at all: all get the same."""
        n, upto = len(self.layers), _sums(self.layers)
        edges = [bisect_left(range(n), end, key=lambda i: i / n) for end in _boundaries(shares, len(self.devices))]
        parts = zip(self.devices, pairwise([0, *edges]), strict=True)
        sizes = {name: upto[end] - upto[start] + self.scratch for name, (start, end) in parts if end > start}
        return Space(devices=sizes)

    def scaled(self, factor: float) -> Split:
        return Split(tuple(round(size * factor) for size in self.layers), round(self.scratch * factor), self.devices)


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes when it is loaded."""

    space: Space = NOTHING
    """Wherever that is."""
    splits: tuple[Split, ...] = ()
    """By what devices have free then, one after the other: a draft model comes after its main model."""

    def __add__(self, other: Need) -> Need:
        return Need(self.space + other.space, self.splits + other.splits)

    def placed_within(self, left: Limit) -> Space:
        """If it is loaded where so much is left. Beside one that nobody counts devices are taken for equal."""
        placed = NOTHING
        for split in self.splits:
            after = (left - placed).devices
            are_counted = all(name in after for name in split.devices)
            placed += split.divided_by([max(0, after[name]) for name in split.devices] if are_counted else [])
        return self.space + placed

    def on_devices(self, names: Sequence[str]) -> Need:
        """Now that it is known that there are no others to choose from."""
        kept = (tuple(name for name in split.devices if name in names) for split in self.splits)
        pairs = zip(self.splits, kept, strict=True)
        return replace(self, splits=tuple(replace(split, devices=names) for split, names in pairs if names))

    def corrected_by(self, taken: Space, estimated: Space) -> Need:
        """What it will take next time, now that it is known what it took in place of the estimate."""
        if not self.splits or not estimated.device:
            return Need(taken)
        factor = taken.device / estimated.device
        on_devices = {name: round(size * factor) for name, size in self.space.devices.items()}
        return Need(Space(taken.host, on_devices), tuple(split.scaled(factor) for split in self.splits))


@dataclass(frozen=True, slots=True)
class Offload:
    """What of a model goes to which devices, as its options say."""

    n_layers: int = 0
    """Counted from the output; one more than there are layers takes the output along."""
    devices: tuple[str, ...] = ()
    mode: str = "layer"
    shares: tuple[float, ...] = ()
    """Of each device; none: by what they have free."""
    sizes: tuple[float, ...] = ()
    """Of each device's memory, in whatever unit."""
    with_kv: bool = True
    pipelines: bool = False
    """Several batches may be on their way through the devices, if all layers are there."""

    def need(self, weights: Sequence[int], kv: Sequence[int], scratch: int) -> Need:
        """Of the layers that go to devices: bytes of each one's weights and KV cache."""
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
    """To the byte, so that the sum stays what it was."""
    edges = [round(size * end) for end in _boundaries(shares, len(devices))]
    parts = zip(devices, pairwise([0, *edges]), strict=True)
    return Space(devices={name: end - start for name, (start, end) in parts})


@functools.lru_cache(maxsize=64)  # asked again for each set of victims
def _sums(layers: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes of the first none, one, two … layers."""
    return (0, *accumulate(layers))


def _boundaries(shares: Sequence[float], n: int) -> list[float]:
    """Where each of `n` parts ends, between 0 and 1."""
    given = [*shares, *([0.0] * n)][:n]
    sums = list(accumulate(given if any(given) else [1.0] * n))
    return [end / sums[-1] for end in sums]
