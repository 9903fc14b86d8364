"""The option table, part 3: context, batches, KV cache, slots, position scaling and CPU threads."""

from typing import Literal

from .option import OptionGroup, option, within
from .values import KvType, NotZero, OffBelowZero, OnOffAuto, Switch

_AFFINITY = "the bindings have no access to thread pools: use taskset instead"
_SCHEDULING = "the bindings have no access to thread pools; results are the same without it"

AUTO_SLOTS = 4
"""Number of slots for `--parallel -1`; they share one KV cache."""


class ContextOptions(OptionGroup):
    title = "Context and slots"

    ctx_size: int = option(
        0,
        "-c --ctx-size",
        "context in tokens, shared by all slots; 0: the model's trained context",
        env="CTX_SIZE",
        hint="N",
        limits=within(ge=0),
    )
    n_predict: int = option(
        -1,
        "-n --predict --n-predict",
        "maximum number of generated tokens; -1: no limit",
        env="N_PREDICT",
        hint="N",
        limits=within(ge=-1),
    )
    keep: int = option(
        0,
        "--keep",
        "tokens at the start of the prompt that a context shift keeps; -1: all",
        hint="N",
        limits=within(ge=-1),
    )
    batch_size: int = option(
        2048, "-b --batch-size", "maximum number of tokens per batch", env="BATCH", hint="N", limits=within(ge=1)
    )
    ubatch_size: OffBelowZero = option(
        512,
        "-ub --ubatch-size",
        "maximum number of tokens that the device computes in one step; 0: as --batch-size",
        env="UBATCH",
        hint="N",
    )
    parallel: NotZero = option(
        -1,
        "-np --parallel",
        "number of slots, which is the number of parallel requests; -1: automatic",
        env="N_PARALLEL",
        hint="N",
    )
    cont_batching: Switch = option(
        True,
        "-cb --cont-batching",
        "add new requests to a running batch",
        no="-nocb --no-cont-batching",
        env="CONT_BATCHING",
    )
    kv_unified: Switch | None = option(
        None,
        "-kvu --kv-unified",
        "share one KV cache between all slots; default: on if the number of slots is automatic",
        no="-no-kvu --no-kv-unified",
        env="KV_UNIFIED",
    )
    kv_unified_per_slot: OffBelowZero = option(
        0,
        "--kv-unified-per-slot",
        "maximum context of one slot in tokens; without --ctx-size it also sets the size of the cache; 0: no limit",
        env="KV_UNIFIED_PER_SLOT",
        hint="N",
    )
    swa_full: Switch = option(False, "--swa-full", "use a full-size cache for sliding-window layers", env="SWA_FULL")
    flash_attn: OnOffAuto = option(
        "auto", "-fa --flash-attn", "use flash attention", env="FLASH_ATTN", hint="on|off|auto"
    )
    cache_type_k: KvType = option(
        "f16", "-ctk --cache-type-k", "data type of the keys in the KV cache", env="CACHE_TYPE_K", hint="TYPE"
    )
    cache_type_v: KvType = option(
        "f16", "-ctv --cache-type-v", "data type of the values in the KV cache", env="CACHE_TYPE_V", hint="TYPE"
    )
    kv_offload: Switch = option(
        True, "-kvo --kv-offload", "keep the KV cache on the device", no="-nkvo --no-kv-offload", env="KV_OFFLOAD"
    )
    context_shift: Switch = option(
        False,
        "--context-shift",
        "if the context is full, remove its oldest half and continue",
        env="CONTEXT_SHIFT",
    )
    cache_prompt: Switch = option(
        True, "--cache-prompt", "reuse a slot's KV cache for the common start of prompts", env="CACHE_PROMPT"
    )
    cache_reuse: OffBelowZero = option(
        0,
        "--cache-reuse",
        "minimum length of a chunk, in tokens, that is reused by shifting the cache; 0: off",
        env="CACHE_REUSE",
        hint="N",
    )
    cache_ram: int = option(
        8192,
        "-cram --cache-ram",
        "MiB of host memory for prompts that are no longer in a slot; -1: no limit, 0: off",
        env="CACHE_RAM",
        hint="MIB",
        limits=within(ge=-1),
    )
    cache_disk: int = option(
        4096,
        "--cache-disk",
        "MiB on disk for the prompts of sleeping and evicted models, so that conversations continue quickly; 0: off",
        hint="MIB",
        limits=within(ge=0),
    )
    cache_disk_dir: str = option(
        "",
        "--cache-disk-dir",
        "directory for --cache-disk, kept after the program ends; default: a private directory that is deleted then",
        hint="DIR",
    )
    cache_idle_slots: Switch = option(
        True,
        "--cache-idle-slots",
        "move the prompts of idle slots to the host memory cache",
        env="CACHE_IDLE_SLOTS",
    )
    swa_checkpoints: OffBelowZero = option(
        32,
        "-ctxcp --ctx-checkpoints --swa-checkpoints",
        "maximum number of context checkpoints per slot; 0: none",
        env="CTX_CHECKPOINTS",
        hint="N",
    )
    checkpoint_min_step: int = option(
        8192,
        "-cms --checkpoint-min-step",
        "minimum number of tokens between two checkpoints",
        env="CHECKPOINT_MIN_SPACING_NT",
        hint="N",
        limits=within(ge=0),
    )
    slot_prompt_similarity: float = option(
        0.1,
        "-sps --slot-prompt-similarity",
        "share of a prompt that must match a slot's prompt for that slot to be preferred; 0: off, -1: any",
        hint="SHARE",
        limits=within(-1, 1),
    )
    slot_save_path: str = option(
        "",
        "--slot-save-path",
        "directory where slots can be saved and restored",
        hint="DIR",
    )
    warmup: Switch = option(True, "--warmup", "compute an empty batch before the first request")
    sleep_idle_seconds: NotZero = option(
        -1,
        "--sleep-idle-seconds",
        "idle seconds after which the model's memory is freed until the next request; -1: never",
        hint="SECONDS",
    )
    defrag_thold: float = option(
        0.0,
        "-dt --defrag-thold",
        "formerly the threshold for defragmentation of the KV cache",
        env="DEFRAG_THOLD",
        hint="N",
        notice="the KV cache no longer needs defragmentation",
    )


class RopeOptions(OptionGroup):
    title = "Position scaling"

    rope_scaling: Literal["none", "linear", "yarn"] | None = option(
        None,
        "--rope-scaling",
        "scaling method: none, linear or yarn; default: the model's",
        env="ROPE_SCALING_TYPE",
        hint="METHOD",
    )
    rope_scale: float = option(
        0.0,
        "--rope-scale",
        "factor by which the context is extended; 0: the model's",
        env="ROPE_SCALE",
        hint="N",
        limits=within(ge=0),
        replaces=("rope_freq_scale",),
    )
    rope_freq_base: float = option(
        0.0,
        "--rope-freq-base",
        "base frequency; 0: the model's",
        env="ROPE_FREQ_BASE",
        hint="N",
        limits=within(ge=0),
    )
    rope_freq_scale: float = option(
        0.0,
        "--rope-freq-scale",
        "frequency factor, the inverse of --rope-scale; 0: the model's",
        env="ROPE_FREQ_SCALE",
        hint="N",
        limits=within(ge=0),
        replaces=("rope_scale",),
    )
    yarn_orig_ctx: int = option(
        0,
        "--yarn-orig-ctx",
        "context in tokens with which the model was trained; 0: the model's",
        env="YARN_ORIG_CTX",
        hint="N",
        limits=within(ge=0),
    )
    yarn_ext_factor: float = option(
        -1.0,
        "--yarn-ext-factor",
        "share of extrapolation; -1: the model's, 0: interpolation only",
        env="YARN_EXT_FACTOR",
        hint="N",
    )
    yarn_attn_factor: float = option(
        -1.0,
        "--yarn-attn-factor",
        "scale of the attention; -1: the model's",
        env="YARN_ATTN_FACTOR",
        hint="N",
    )
    yarn_beta_slow: float = option(
        -1.0, "--yarn-beta-slow", "high correction dimension; -1: the model's", env="YARN_BETA_SLOW", hint="N"
    )
    yarn_beta_fast: float = option(
        -1.0, "--yarn-beta-fast", "low correction dimension; -1: the model's", env="YARN_BETA_FAST", hint="N"
    )


class ThreadOptions(OptionGroup):
    title = "CPU"

    threads: int = option(
        -1, "-t --threads", "number of threads for generation; -1: automatic", env="THREADS", hint="N"
    )
    threads_batch: int = option(
        -1, "-tb --threads-batch", "number of threads for prompts; -1: same as --threads", hint="N"
    )
    cpu_mask: str = option(
        "", "-C --cpu-mask", "CPUs to run on, as a hexadecimal mask", hint="MASK", unsupported=_AFFINITY
    )
    cpu_range: str = option("", "-Cr --cpu-range", "CPUs to run on, as a range", hint="LO-HI", unsupported=_AFFINITY)
    cpu_strict: Switch = option(False, "--cpu-strict", "bind each thread to one CPU", hint="0|1", notice=_SCHEDULING)
    prio: int = option(
        0, "--prio", "priority from -1 (low) to 3 (real time)", hint="N", limits=within(-1, 3), notice=_SCHEDULING
    )
    poll: int = option(
        50,
        "--poll",
        "polling of threads that wait for work, from 0 (none) to 100",
        hint="0…100",
        notice=_SCHEDULING,
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
    poll_batch: int = option(50, "--poll-batch", "as --poll, for prompts", hint="0…100", notice=_SCHEDULING)
    perf: Switch = option(
        False, "--perf", "measure timings in llama.cpp", env="PERF", notice="the worker itself measures timings"
    )
