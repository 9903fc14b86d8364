"""The option table, part three: context, batches, KV cache, slots, position scaling and CPU threads."""

from __future__ import annotations

from typing import Literal

from .option import OptionGroup, option, within
from .values import KvType, NotZero, OnOffAuto, Switch

_AFFINITY = "the bindings reach no thread pool: start it under taskset instead"
_SCHEDULING = "the bindings reach no thread pool: a hint that changes no result"

AUTO_SLOTS = 4
"""Slots of `--parallel -1`, which share one KV pool."""


class ContextOptions(OptionGroup):
    title = "Context and slots"

    ctx_size: int = option(
        0,
        "-c --ctx-size",
        "tokens of context shared by all slots; 0: as the model was trained",
        env="CTX_SIZE",
        hint="N",
        limits=within(ge=0),
    )
    n_predict: int = option(
        -1,
        "-n --predict --n-predict",
        "most tokens an answer may have; -1: no limit",
        env="N_PREDICT",
        hint="N",
        limits=within(ge=-1),
    )
    keep: int = option(
        0,
        "--keep",
        "tokens of the prompt's beginning that a shifted context keeps; -1: all",
        hint="N",
        limits=within(ge=-1),
    )
    batch_size: int = option(
        2048, "-b --batch-size", "most tokens of one step", env="BATCH", hint="N", limits=within(ge=1)
    )
    ubatch_size: int = option(
        512, "-ub --ubatch-size", "most tokens the device computes at once", env="UBATCH", hint="N", limits=within(ge=1)
    )
    parallel: NotZero = option(
        -1,
        "-np --parallel",
        "slots, i.e. requests served at once; -1: chosen automatically",
        env="N_PARALLEL",
        hint="N",
    )
    cont_batching: Switch = option(
        True,
        "-cb --cont-batching",
        "let requests join a running batch",
        no="-nocb --no-cont-batching",
        env="CONT_BATCHING",
    )
    kv_unified: Switch | None = option(
        None,
        "-kvu --kv-unified",
        "one KV cache that all slots draw from; by default when the number of slots is automatic",
        no="-no-kvu --no-kv-unified",
        env="KV_UNIFIED",
    )
    kv_unified_per_slot: int = option(
        0,
        "--kv-unified-per-slot",
        "limit of one slot's context; without --ctx-size it also sizes the whole cache; 0: none",
        env="KV_UNIFIED_PER_SLOT",
        hint="N",
        limits=within(ge=0),
    )
    swa_full: Switch = option(False, "--swa-full", "full-size cache for sliding-window layers", env="SWA_FULL")
    flash_attn: OnOffAuto = option("auto", "-fa --flash-attn", "flash attention", env="FLASH_ATTN", hint="on|off|auto")
    cache_type_k: KvType = option(
        "f16", "-ctk --cache-type-k", "type of the cached keys", env="CACHE_TYPE_K", hint="TYPE"
    )
    cache_type_v: KvType = option(
        "f16", "-ctv --cache-type-v", "type of the cached values", env="CACHE_TYPE_V", hint="TYPE"
    )
    kv_offload: Switch = option(
        True, "-kvo --kv-offload", "keep the KV cache on the device", no="-nkvo --no-kv-offload", env="KV_OFFLOAD"
    )
    context_shift: Switch = option(
        False,
        "--context-shift",
        "drop the oldest half of a full context and go on",
        env="CONTEXT_SHIFT",
    )
    cache_prompt: Switch = option(
        True, "--cache-prompt", "reuse what a slot has computed for the same beginning", env="CACHE_PROMPT"
    )
    cache_reuse: int = option(
        0,
        "--cache-reuse",
        "shortest piece that is reused by shifting the cache; 0: off",
        env="CACHE_REUSE",
        hint="N",
        limits=within(ge=0),
    )
    cache_ram: int = option(
        8192,
        "-cram --cache-ram",
        "MiB of host memory for prompts that left their slot; -1: no limit, 0: off",
        env="CACHE_RAM",
        hint="MIB",
        limits=within(ge=-1),
    )
    cache_disk: int = option(
        4096,
        "--cache-disk",
        "MiB on disk for the prompts of models that sleep or were evicted, so that conversations go on; 0: off",
        hint="MIB",
        limits=within(ge=0),
    )
    cache_disk_dir: str = option(
        "",
        "--cache-disk-dir",
        "directory for them, kept after the end; by default a private one that ends with the program",
        hint="DIR",
    )
    cache_idle_slots: Switch = option(
        True,
        "--cache-idle-slots",
        "move idle slots to the host memory cache",
        env="CACHE_IDLE_SLOTS",
    )
    swa_checkpoints: int = option(
        32,
        "-ctxcp --ctx-checkpoints --swa-checkpoints",
        "most context checkpoints of a slot",
        env="CTX_CHECKPOINTS",
        hint="N",
        limits=within(ge=0),
    )
    checkpoint_min_step: int = option(
        8192,
        "-cms --checkpoint-min-step",
        "fewest tokens between two checkpoints",
        env="CHECKPOINT_MIN_SPACING_NT",
        hint="N",
        limits=within(ge=0),
    )
    slot_prompt_similarity: float = option(
        0.1,
        "-sps --slot-prompt-similarity",
        "how much of a prompt must match a slot's for that slot to be preferred; 0: off",
        hint="SHARE",
        limits=within(0, 1),
    )
    slot_save_path: str = option(
        "",
        "--slot-save-path",
        "directory that slots may be saved to and restored from",
        hint="DIR",
    )
    warmup: Switch = option(True, "--warmup", "compute an empty batch once before the first request")
    sleep_idle_seconds: NotZero = option(
        -1,
        "--sleep-idle-seconds",
        "free the model's memory after so many idle seconds, until the next request; -1: never",
        hint="SECONDS",
    )
    defrag_thold: float = option(
        0.0,
        "-dt --defrag-thold",
        "once a threshold of defragmentation",
        env="DEFRAG_THOLD",
        hint="N",
        notice="the KV cache needs no defragmentation any more",
    )


class RopeOptions(OptionGroup):
    title = "Position scaling"

    rope_scaling: Literal["none", "linear", "yarn"] | None = option(
        None,
        "--rope-scaling",
        "none, linear or yarn; by default as the model says",
        env="ROPE_SCALING_TYPE",
        hint="METHOD",
    )
    rope_scale: float = option(
        0.0,
        "--rope-scale",
        "stretch the context by this factor; 0: as the model says",
        env="ROPE_SCALE",
        hint="N",
        limits=within(ge=0),
        replaces=("rope_freq_scale",),
    )
    rope_freq_base: float = option(
        0.0,
        "--rope-freq-base",
        "base frequency; 0: as the model says",
        env="ROPE_FREQ_BASE",
        hint="N",
        limits=within(ge=0),
    )
    rope_freq_scale: float = option(
        0.0,
        "--rope-freq-scale",
        "frequency factor, the inverse of --rope-scale; 0: as the model says",
        env="ROPE_FREQ_SCALE",
        hint="N",
        limits=within(ge=0),
        replaces=("rope_scale",),
    )
    yarn_orig_ctx: int = option(
        0,
        "--yarn-orig-ctx",
        "context the model was trained with; 0: as the model says",
        env="YARN_ORIG_CTX",
        hint="N",
        limits=within(ge=0),
    )
    yarn_ext_factor: float = option(
        -1.0,
        "--yarn-ext-factor",
        "extrapolation mix; -1: as the model says, 0: interpolation only",
        env="YARN_EXT_FACTOR",
        hint="N",
    )
    yarn_attn_factor: float = option(
        -1.0,
        "--yarn-attn-factor",
        "magnitude of the attention; -1: as the model says",
        env="YARN_ATTN_FACTOR",
        hint="N",
    )
    yarn_beta_slow: float = option(
        -1.0, "--yarn-beta-slow", "high correction dimension; -1: as the model says", env="YARN_BETA_SLOW", hint="N"
    )
    yarn_beta_fast: float = option(
        -1.0, "--yarn-beta-fast", "low correction dimension; -1: as the model says", env="YARN_BETA_FAST", hint="N"
    )


class ThreadOptions(OptionGroup):
    title = "CPU"

    threads: int = option(
        -1, "-t --threads", "threads for generation; -1: chosen automatically", env="THREADS", hint="N"
    )
    threads_batch: int = option(-1, "-tb --threads-batch", "threads for prompts; -1: as --threads", hint="N")
    cpu_mask: str = option(
        "", "-C --cpu-mask", "CPUs to run on, as a hexadecimal mask", hint="MASK", unsupported=_AFFINITY
    )
    cpu_range: str = option("", "-Cr --cpu-range", "CPUs to run on, as a range", hint="LO-HI", unsupported=_AFFINITY)
    cpu_strict: Switch = option(False, "--cpu-strict", "one CPU for each thread", hint="0|1", notice=_SCHEDULING)
    prio: int = option(
        0, "--prio", "priority from -1 (low) to 3 (real time)", hint="N", limits=within(-1, 3), notice=_SCHEDULING
    )
    poll: int = option(
        50, "--poll", "how eagerly threads poll for work", hint="0…100", limits=within(0, 100), notice=_SCHEDULING
    )
    cpu_mask_batch: str = option(
        "", "-Cb --cpu-mask-batch", "as --cpu-mask, for prompts", hint="MASK", unsupported=_AFFINITY
    )
    cpu_range_batch: str = option(
        "", "-Crb --cpu-range-batch", "as --cpu-range, for prompts", hint="LO-HI", unsupported=_AFFINITY
    )
    cpu_strict_batch: Switch = option(
        False, "--cpu-strict-batch", "as --cpu-strict, for prompts", hint="0|1", notice=_SCHEDULING
    )
    prio_batch: int = option(
        0, "--prio-batch", "as --prio, for prompts", hint="N", limits=within(0, 3), notice=_SCHEDULING
    )
    poll_batch: int = option(
        50, "--poll-batch", "as --poll, for prompts", hint="0…100", limits=within(0, 100), notice=_SCHEDULING
    )
    perf: Switch = option(
        False, "--perf", "timings inside llama.cpp", env="PERF", notice="timings are measured by the worker itself"
    )
