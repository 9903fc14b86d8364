"""Converts the settings to the values that the engine and llama.cpp use. Queries no device.

`speculative/options` converts the settings for drafts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llama_corral.presets.context_shape import ContextShape, context_shape
from llama_corral.presets.options.context import AUTO_SLOTS
from llama_corral.presets.options.model import EXPERT_TENSORS
from msgspec import Struct

from .cpu_threads import physical_cores
from .errors import LoadError

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings

FFN_DENSE = r"\.ffn_(up|down|gate)\."

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_SPLIT_MODE = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
_LOAD_MODE = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2, "mmap+mlock": 3, "dio": 4}
_LAZY_MODE = {"off": 0, "auto": 1, "on": 2}
_ROPE_SCALING = {None: -1, "none": 0, "linear": 1, "yarn": 2}
_POOLING = {None: -1, "none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
_NUMA = {None: 0, "distribute": 1, "isolate": 2, "numactl": 3}
CACHE_TYPE = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}  # ggml_type
_N_CACHE_DRAFT = 8


class ProjectorOptions(Struct, frozen=True):
    path: Path
    marker: str  # placeholder in a prompt for each image
    offload: bool = True
    device: str = ""
    image_min_tokens: int = -1
    image_max_tokens: int = -1
    batch_max_tokens: int = 1024
    video_fps: float = 4.0
    video_timestamp_interval: int = 5000
    video_ffmpeg_dir: str = ""
    max_memory: int = 512  # MiB that the decoded files of one request may need


class NgramSizes(Struct, frozen=True):
    n_lookup: int
    n_draft: int
    min_hits: int


class SpeculationOptions(Struct, frozen=True):
    kinds: tuple[str, ...]
    n_max: int
    n_min: int
    p_min: float
    ngram_simple: NgramSizes
    ngram_map_k: NgramSizes
    ngram_map_k4v: NgramSizes
    mod_n_lookup: int
    mod_n_min: int
    mod_n_max: int
    lookup_static: Path | None
    lookup_dynamic: Path | None
    simulated: tuple[float, ...]  # acceptance probability by position, if all before are accepted; empty: off
    model: EngineOptions | None  # of the draft model; its n_ctx is the main context's
    head: EngineOptions | None  # of the MTP head, which is in the main model's file or in a separate one

    @property
    def longest(self) -> int:
        return _longest(self.kinds, self)


class EngineOptions(Struct, frozen=True):
    model: Path
    # context
    n_ctx: int = 0  # total tokens of all slots; 0: the model's trained context
    n_batch: int = 2048
    n_ubatch: int = 512
    n_slots: int = AUTO_SLOTS
    kv_unified: bool = True
    n_ctx_per_slot: int = 0  # maximum; 0: no limit
    flash_attention: int = -1
    cache_type_k: int = 1
    cache_type_v: int = 1
    kv_offload: bool = True
    op_offload: bool = True
    swa_full: bool = False
    embeddings: bool = False
    pooling: int = -1
    n_threads: int = 1
    n_threads_batch: int = 1
    rope_scaling: int = -1
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_orig_ctx: int = 0
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = -1.0
    yarn_beta_fast: float = -1.0
    yarn_beta_slow: float = -1.0
    # model
    n_gpu_layers: int = -1
    devices: tuple[str, ...] = ()
    split_mode: int = 1
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    load_mode: int = -1
    lazy_mode: int = 1
    numa: int = 0
    check_tensors: bool = False
    repack: bool = True
    no_host: bool = False
    kv_overrides: tuple[str, ...] = ()
    tensor_overrides: tuple[tuple[str, str], ...] = ()  # (regular expression of tensor names, buffer type)
    with_head: bool = False  # True: also load the layers of an MTP head
    warmup: bool = True
    # slots
    continuous_batching: bool = True
    context_shift: bool = False
    cache_bytes: int | None = 0  # host memory for prompts that were replaced in their slot; None: no limit, 0: off
    disk_bytes: int = 0  # disk space for prompts of unloaded models; 0: off
    cache_idle_slots: bool = False
    n_checkpoints: int = 0
    checkpoint_min_step: int = 8192
    slot_prompt_similarity: float = 0.1
    n_predict: int = -1
    special: bool = False
    indexes_vocab: bool = False  # True: prepare a large vocabulary for grammars when the model is idle
    # additions
    lora: tuple[tuple[Path, float], ...] = ()  # (file, scale)
    control_vectors: tuple[tuple[Path, float], ...] = ()
    control_vector_layers: tuple[int, int] = (0, 0)  # first and last layer; 0: the model's first or last
    projector: ProjectorOptions | None = None
    sleep_idle_seconds: float = -1.0  # -1: never
    drafts: SpeculationOptions | None = None  # None: no speculative decoding

    @property
    def shape(self) -> ContextShape:
        """The slots and the context that are asked for."""
        return ContextShape(self.n_ctx, self.n_slots, self.kv_unified, self.n_ctx_per_slot, self.n_batch, self.n_ubatch)

    @property
    def stages(self) -> list[str]:
        """The stages of a load, with llama-server's names."""
        has_draft = self.drafts is not None and bool(self.drafts.model or self.drafts.head)
        stages = {"text_model": True, "spec_model": has_draft, "mmproj_model": self.projector is not None}
        return [stage for stage, is_loaded in stages.items() if is_loaded]


def _longest(kinds: tuple[str, ...], o: SpeculationOptions) -> int:
    lengths = {
        "ngram-simple": o.ngram_simple.n_draft,
        "ngram-map-k": o.ngram_map_k.n_draft,
        "ngram-map-k4v": o.ngram_map_k4v.n_draft,
        "ngram-mod": o.mod_n_max,
        "ngram-cache": _N_CACHE_DRAFT,
        "draft-simple": o.n_max,
        "draft-mtp": o.n_max,
    }
    return max(lengths[kind] for kind in kinds)


def from_settings(settings: Settings, model: Path, projector: Path | None, media_marker: str) -> EngineOptions:
    s = settings
    shape = context_shape(s)
    embeddings = s.endpoints.embeddings or s.endpoints.reranking
    n_threads = s.cpu.threads if s.cpu.threads > 0 else physical_cores()
    lora = _scaled(s.main_model.lora, s.main_model.lora_scaled)
    return EngineOptions(
        model=model,
        n_ctx=shape.n_ctx,
        n_batch=shape.n_batch,
        n_ubatch=shape.n_ubatch,
        n_slots=shape.n_slots,
        kv_unified=shape.unified,
        n_ctx_per_slot=shape.n_ctx_per_slot,
        flash_attention=_FLASH_ATTENTION[s.context.flash_attn],
        cache_type_k=CACHE_TYPE[s.context.cache_type_k],
        cache_type_v=CACHE_TYPE[s.context.cache_type_v],
        kv_offload=s.context.kv_offload,
        op_offload=s.load.op_offload,
        swa_full=s.context.swa_full,
        embeddings=embeddings,
        indexes_vocab=not embeddings and s.sampling.grammar_matcher == "llguidance",
        pooling=_POOLING["rank"] if s.endpoints.reranking else _POOLING[s.endpoints.pooling],
        n_threads=n_threads,
        n_threads_batch=s.cpu.threads_batch if s.cpu.threads_batch > 0 else n_threads,
        rope_scaling=_ROPE_SCALING[s.rope.rope_scaling],
        rope_freq_base=s.rope.rope_freq_base,
        rope_freq_scale=s.rope.rope_freq_scale or (1.0 / s.rope.rope_scale if s.rope.rope_scale else 0.0),
        yarn_orig_ctx=s.rope.yarn_orig_ctx,
        yarn_ext_factor=s.rope.yarn_ext_factor,
        yarn_attn_factor=s.rope.yarn_attn_factor,
        yarn_beta_fast=s.rope.yarn_beta_fast,
        yarn_beta_slow=s.rope.yarn_beta_slow,
        n_gpu_layers=gpu_layers(str(s.load.n_gpu_layers)),
        devices=s.load.device,
        split_mode=_SPLIT_MODE[s.load.split_mode],
        tensor_split=s.load.tensor_split,
        main_gpu=s.load.main_gpu,
        load_mode=_LOAD_MODE[s.load.load_mode],
        lazy_mode=_LAZY_MODE[s.load.lazy_mode],
        numa=_NUMA[s.load.numa],
        check_tensors=s.main_model.check_tensors,
        repack=s.load.repack,
        no_host=s.load.no_host,
        kv_overrides=s.main_model.override_kv,
        tensor_overrides=tensor_overrides(
            "--override-tensor", s.load.override_tensor, s.load.cpu_moe, s.load.n_cpu_moe, s.load.n_cpu_ffn
        ),
        warmup=s.context.warmup,
        continuous_batching=s.context.cont_batching,
        context_shift=s.context.context_shift and projector is None,  # part of an image cannot be removed
        cache_bytes=None if s.context.cache_ram < 0 else s.context.cache_ram << 20,
        disk_bytes=s.context.cache_disk << 20,
        cache_idle_slots=s.context.cache_idle_slots,
        n_checkpoints=s.context.swa_checkpoints,
        checkpoint_min_step=s.context.checkpoint_min_step,
        slot_prompt_similarity=s.context.slot_prompt_similarity,
        n_predict=s.context.n_predict,
        special=s.endpoints.special,
        lora=tuple((path, 0.0 if s.main_model.lora_init_without_apply else scale) for path, scale in lora),
        control_vectors=_scaled(s.main_model.control_vector, s.main_model.control_vector_scaled),
        control_vector_layers=s.main_model.control_vector_layer_range or (0, 0),
        projector=_projector(s, projector, media_marker) if projector else None,
        sleep_idle_seconds=s.context.sleep_idle_seconds,
    )


def _projector(s: Settings, path: Path, marker: str) -> ProjectorOptions:
    return ProjectorOptions(
        path,
        marker,
        offload=s.media.mmproj_offload,
        device=s.media.mmproj_device or ",".join(s.load.device[:1]),
        image_min_tokens=s.media.image_min_tokens,
        image_max_tokens=s.media.image_max_tokens,
        batch_max_tokens=s.media.mtmd_batch_max_tokens,
        video_fps=s.media.video_fps,
        video_timestamp_interval=s.media.video_timestamp_interval,
        video_ffmpeg_dir=s.media.video_ffmpeg_dir,
        max_memory=s.media.media_max_memory,
    )


def _scaled(files: tuple[str, ...], scaled: tuple[tuple[str, float], ...]) -> tuple[tuple[Path, float], ...]:
    return (*((Path(file), 1.0) for file in files), *((Path(file), scale) for file, scale in scaled))


def gpu_layers(value: str) -> int:
    return {"auto": -1, "all": -2}[value] if value in ("auto", "all") else int(value)


def tensor_overrides(
    option: str, rules: str, cpu_moe: bool, n_cpu_moe: int, n_cpu_ffn: int = 0
) -> tuple[tuple[str, str], ...]:
    """Return the (regular expression of tensor names, buffer type) pairs of an option's rules. Raises LoadError."""
    result: list[tuple[str, str]] = []
    for word in filter(None, rules.split(",")):
        pattern, equals, buffer_type = word.rpartition("=")
        if not equals:
            raise LoadError(f"{option}: {word!r} has no '=' between tensor pattern and buffer type")
        result.append((pattern, buffer_type))
    if cpu_moe:
        result.append((EXPERT_TENSORS, "CPU"))
    for n_layers, tensors in ((n_cpu_moe, EXPERT_TENSORS), (n_cpu_ffn, FFN_DENSE)):
        result += [(rf"blk\.{layer}{tensors}", "CPU") for layer in range(n_layers)]
    return tuple(result)
