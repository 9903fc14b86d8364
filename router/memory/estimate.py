"""Estimate from a model's header and options how much of each memory it will use, before it is loaded.

Pure: the callers read the headers. After a load, the measured size replaces the estimate (`requirements`). The split
over devices is done by `device_split`. For weights and KV cache the estimate is within one or two percent of what
llama.cpp allocates; compute buffers depend on the graph and are rounded up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from llama_corral.common.hub.gguf_header import GgufError, Header, Tensor
from llama_corral.common.hub.gguf_types import TENSOR_TYPES
from llama_corral.presets.context_shape import ContextShape, ResolvedContext, padded
from llama_corral.presets.options.context import AUTO_SLOTS
from llama_corral.presets.options.model import EXPERT_TENSORS
from msgspec import Struct

from ..placement.device_split import NO_NEED, NO_OFFLOAD, Need, Offload
from ..placement.memory_amounts import Space

PROCESS_BYTES = 48 << 20
"""Bytes of a worker without its model: Python objects, response buffers, llama.cpp's metadata. Measured: 35-50 MiB."""
SWA_PATTERN = {
    "gemma2": 2, "gpt-oss": 2, "modern-bert": 3, "gemma3n": 5, "gemma3": 6, "gemma-embedding": 6, "plamo3": 8,
}  # fmt: skip
"""By architecture: one of this many layers sees the whole context, if the file does not say it. Others: one of four."""
_ELEMENT_BYTES = {name: size / block for name, block, size in TENSOR_TYPES.values()}
_EXPERTS = re.compile(EXPERT_TENSORS)
EVERY_LAYER = 1 << 30
_LAYER = re.compile(r"blk\.(\d+)\.")


MAX_LAYERS = 1024
"""Twice llama.cpp's limit. The work grows with it, and a file may claim any number."""
MAX_NUMBER = 1 << 32
"""Larger dimensions count as this much."""
MAX_BYTES = 1 << 50
"""Largest estimate of a layer's cache and of a buffer; more would not fit into a JSON number."""
PIPELINE_COPIES = 4
"""Copies of a graph's inputs if several batches go through devices in a pipeline (GGML_SCHED_MAX_COPIES)."""


class Footprint(Struct, frozen=True):
    """Bytes of all weights, of the whole KV cache, and of the compute buffers of one device or of the host."""

    weights: int = 0
    kv: int = 0
    scratch: int = 0
    need: Need = NO_NEED
    """The same by memory. Each device with layers has compute buffers; the host has the inputs for the devices."""

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(
            self.weights + other.weights,
            self.kv + other.kv,
            self.scratch + other.scratch,
            self.need + other.need,
        )


class FootprintOptions(Struct, frozen=True):
    """The options that determine the footprint, in tokens and layers."""

    n_ctx: int = 0
    """Tokens of all slots together; 0: the model's context length."""
    n_ctx_slot: int = 0
    """Maximum tokens of one slot; 0: no limit."""
    n_slots: int = AUTO_SLOTS
    unified: bool = True
    n_ubatch: int = 512
    flash_attention: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    swa_full: bool = False
    n_expert_layers_on_host: int = 0
    offload: Offload = NO_OFFLOAD

    def context_of(self, header: Header) -> ResolvedContext:
        """Return the context of the model with this header."""
        shape = ContextShape(self.n_ctx, self.n_slots, self.unified, self.n_ctx_slot, self.n_ubatch, self.n_ubatch)
        n_ctx_train = _number(header, "context_length", 4096)
        return shape.resolve(n_ctx_train, is_causal=_has_kv_cache(header))


def estimate(shards: Sequence[Header], options: FootprintOptions) -> Footprint:
    """Return the footprint of one model. `shards`: the headers of all its files; the first one has the metadata.

    Raises GgufError if the model has too many layers.
    """
    shape, offload = _ModelDimensions(shards, options), options.offload
    first_on_device = max(0, shape.n_layers + 1 - offload.n_layers)
    weights = kv = 0
    moved: list[int] = []
    moved_kv: list[int] = []
    for layer in range(-1, shape.n_layers + 1):  # -1: the input, n_layers: the output
        size, staying = shape.weights(layer)
        memory = shape.kv_cache(layer)
        weights += size
        kv += memory
        if offload.devices and layer >= first_on_device:
            moved.append(size - staying)
            moved_kv.append(memory if offload.with_kv else 0)
    n_moved = sum(moved) + sum(moved_kv)
    if not n_moved:
        return Footprint(weights, kv, shape.scratch, Need(Space(weights + kv + shape.scratch)))
    is_whole = len(moved) > shape.n_layers
    copies = PIPELINE_COPIES if offload.pipelines and is_whole else 1
    scratch = shape.scratch + (copies - 1) * shape.inputs
    on_host = copies * shape.inputs + (0 if is_whole and not options.n_expert_layers_on_host else shape.scratch)
    rest = Need(Space(weights + kv - n_moved + on_host))
    return Footprint(weights, kv, scratch, rest + offload.need(moved, moved_kv, scratch))


class _ModelDimensions:
    """The dimensions of a model that determine its memory."""

    def __init__(self, shards: Sequence[Header], options: FootprintOptions) -> None:
        self.options = options
        self._header = shards[0]
        tensors = [tensor for shard in shards for tensor in shard.tensors]
        self.n_layers = self._number("block_count")
        if self.n_layers > MAX_LAYERS:
            raise GgufError(f"claims to have {self.n_layers} layers, the limit is {MAX_LAYERS}: corrupt")
        self._layers: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            found = _LAYER.match(tensor.name)
            layer = (
                int(found[1]) if found else -1 if tensor.name.startswith(("token_embd", "position_")) else self.n_layers
            )
            self._layers.setdefault(min(layer, self.n_layers), []).append(tensor)
        context = options.context_of(self._header)
        self._n_streams = context.n_streams
        self._cells = context.n_ctx_seq
        """Cells of one stream."""
        self._window = self._number("attention.sliding_window")

    def weights(self, layer: int) -> tuple[int, int]:
        """Return the bytes of a layer's weights, and how many of them stay on the host even if it is offloaded."""
        tensors = self._layers.get(layer, [])
        size = sum(tensor.size for tensor in tensors)
        is_tied = layer == self.n_layers and not any(tensor.name == "output.weight" for tensor in tensors)
        if is_tied and self.options.offload.n_layers:  # the device gets a copy of the input embeddings
            size += sum(tensor.size for tensor in self._layers.get(-1, []))
        if 0 <= layer < min(self.options.n_expert_layers_on_host, self.n_layers):
            return size, sum(tensor.size for tensor in tensors if _EXPERTS.search(tensor.name))
        return size, 0

    def kv_cache(self, layer: int) -> int:
        """Return the bytes of a layer's KV cache or recurrent state."""
        tensors = self._block(layer)
        if _is_recurrent(tensors):
            return min(self._recurrent() * self.options.n_slots, MAX_BYTES)
        if not self._has_attention(layer) or not _has_kv_cache(self._header):
            return 0
        keys, values = self._row(tensors, layer)
        row = keys * _bytes_of(self.options.type_k) + values * _bytes_of(self.options.type_v)
        return min(int(row * self._cells_of(layer) * self._n_streams), MAX_BYTES)

    @cached_property
    def scratch(self) -> int:
        """Bytes of one physical batch's activations, the attention mask, and without flash attention the scores."""
        n, n_embd, n_ff = (
            self.options.n_ubatch,
            self._number("embedding_length"),
            self._max_over_layers("feed_forward_length"),
        )
        n_ff = max(n_ff, self._number("expert_used_count") * self._number("expert_feed_forward_length"))
        activations = n * 4 * (3 * n_ff + 4 * n_embd)
        cells = max((size for size, _ in self._caches), default=0)
        scores = 0 if self.options.flash_attention else n * 4 * cells * self._max_over_layers("attention.head_count")
        return min(activations + self._mask + scores, MAX_BYTES)

    @cached_property
    def inputs(self) -> int:
        """Bytes that the host sends to devices for each batch: the token embeddings and the attention mask."""
        return min(self.options.n_ubatch * 4 * self._number("embedding_length") + self._mask, MAX_BYTES)

    @property
    def _mask(self) -> int:
        return (
            self.options.n_ubatch * sum(cells for cells, _ in self._caches) * (2 if self.options.flash_attention else 4)
        )

    @cached_property
    def _caches(self) -> set[tuple[int, bool]]:
        """Cells of each kind of cache, and True if it has a sliding window."""
        attending = [layer for layer in range(self.n_layers) if self._has_attention(layer)]
        return {(self._cells_of(layer), self._is_windowed(layer)) for layer in attending}

    def _block(self, layer: int) -> dict[str, Tensor]:
        """Return the layer's tensors by the part of their name after `blk.N.`, without suffix."""
        tensors = [tensor for tensor in self._layers.get(layer, []) if _LAYER.match(tensor.name)]
        return {tensor.name.split(".")[2]: tensor for tensor in tensors}

    def _has_attention(self, layer: int) -> bool:
        tensors = self._block(layer)
        return not _is_recurrent(tensors) and any(name.startswith("attn_") for name in tensors)

    def _row(self, tensors: dict[str, Tensor], layer: int) -> tuple[int, int]:
        """Return the number of elements of a token's key and of its value in one layer."""
        if rank := self._number("attention.kv_lora_rank"):
            return rank + self._number("rope.dimension_count"), 0
        if "attn_k" in tensors and "attn_v" in tensors:
            return _columns(tensors["attn_k"]), _columns(tensors["attn_v"])
        heads = self._of_layer("attention.head_count_kv", layer) or self._of_layer("attention.head_count", layer)
        per_head = self._number("embedding_length") // max(1, self._of_layer("attention.head_count", layer))
        key = self._number("attention.key_length") or per_head
        return heads * key, heads * (self._number("attention.value_length") or per_head)

    def _cells_of(self, layer: int) -> int:
        if self.options.swa_full or not self._is_windowed(layer):
            return self._cells
        sequences = self.options.n_slots if self.options.unified else 1
        return min(self._cells, padded(self._window * sequences + self.options.n_ubatch))

    def _is_windowed(self, layer: int) -> bool:
        if not self._window:
            return False
        given = self._header.metadata.get(f"{self._header.architecture}.attention.sliding_window_pattern")
        if isinstance(given, tuple):
            return layer < len(given) and bool(given[layer])
        every = given if isinstance(given, int) else SWA_PATTERN.get(self._header.architecture, 4)
        return every == 0 or layer % every < every - 1

    def _recurrent(self) -> int:
        """Return the bytes of one sequence's recurrent state in one layer."""
        if head := self._number("wkv.head_size"):
            return 4 * self._number("embedding_length") * (head + (self._number("token_shift_count") or 2))
        if cache := self._number("shortconv.l_cache"):
            return 4 * self._number("embedding_length") * (cache - 1)
        inner, state = self._number("ssm.inner_size"), self._number("ssm.state_size")
        convolution = max(0, self._number("ssm.conv_kernel") - 1)
        return 4 * (convolution * (inner + 2 * self._number("ssm.group_count") * state) + state * inner)

    def _number(self, key: str, default: int = 0) -> int:
        return _number(self._header, key, default)

    def _of_layer(self, key: str, layer: int) -> int:
        value = self._header.metadata.get(f"{self._header.architecture}.{key}", 0)
        if isinstance(value, tuple):
            value = value[layer] if layer < len(value) else 0
        return _bounded(value)

    def _max_over_layers(self, key: str) -> int:
        return max((self._of_layer(key, layer) for layer in range(self.n_layers)), default=0)


def _number(header: Header, key: str, default: int = 0) -> int:
    return _bounded(header.metadata.get(f"{header.architecture}.{key}", default), default)


def _bounded(value: object, default: int = 0) -> int:
    """Return a number of the file as a dimension: neither negative nor enormous."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return default
    return min(max(int(value), 0), MAX_NUMBER)


def _columns(tensor: Tensor) -> int:
    return min(tensor.shape[-1], MAX_NUMBER) if tensor.shape else 1


def _has_kv_cache(header: Header) -> bool:
    """True unless the model is an encoder."""
    return header.metadata.get(f"{header.architecture}.attention.causal") is not False


def _is_recurrent(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("ssm_", "time_mix_", "shortconv")) for name in tensors)


def _bytes_of(cache_type: str) -> float:
    return _ELEMENT_BYTES[cache_type]
