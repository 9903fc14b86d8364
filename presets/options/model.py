"""The option table, part two: which model, and how its weights are loaded onto which device."""

from __future__ import annotations

from typing import Literal

from .option import OptionGroup, OptionReader, Repeat, option, within
from .values import KeyOverrides, LayerCount, LayerRange, Names, NumaStrategy, Numbers, OnOff, ScaledFiles, Switch

EXPERT_TENSORS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The tensors that `--cpu-moe` is about, as a regular expression."""
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]


class ModelOptions(OptionGroup):
    title = "Model"

    model: str = option(
        "", "-m --model", "GGUF file to serve", env="MODEL", hint="FILE", reader=OptionReader.BOTH, per_model=True
    )
    model_url: str = option(
        "",
        "-mu --model-url",
        "address to download the model from; kept under --model if that is given too",
        env="MODEL_URL",
        hint="URL",
        reader=OptionReader.BOTH,
        per_model=True,
    )
    docker_repo: str = option(
        "",
        "-dr --docker-repo",
        "model of Docker Hub: [repository/]model[:quantisation]",
        env="DOCKER_REPO",
        hint="REPO",
        unsupported="Docker Hub is not a source of models here: use --hf-repo or --model",
    )
    hf_repo: str = option(
        "",
        "-hf -hfr --hf-repo",
        "model of Hugging Face, user/model[:quantisation]; without one Q4_K_M, then Q8_0, then the first file",
        env="HF_REPO",
        hint="REPO",
        reader=OptionReader.BOTH,
        per_model=True,
    )
    hf_file: str = option(
        "", "-hff --hf-file", "file within --hf-repo, instead of a quantisation", env="HF_FILE", hint="FILE"
    )
    hf_token: str = option(
        "", "-hft --hf-token", "access token of Hugging Face", env="$HF_TOKEN", hint="TOKEN", secret=True
    )
    offline: Switch = option(
        False,
        "--offline",
        "use the cache only, no network",
        env="OFFLINE",
        older_env="$LLAMA_OFFLINE",
        reader=OptionReader.BOTH,
    )
    alias: Names = option(
        (),
        "-a --alias",
        "further names of the model, separated by commas",
        env="ALIAS",
        hint="NAMES",
        reader=OptionReader.BOTH,
        per_model=True,
    )
    tags: Names = option(
        (),
        "--tags",
        "words shown with the model, separated by commas; not used for routing",
        env="TAGS",
        hint="TAGS",
        reader=OptionReader.BOTH,
    )
    override_kv: KeyOverrides = option(
        (),
        "--override-kv",
        "replace metadata of the model: KEY=TYPE:VALUE with type int, float, bool or str; several with commas",
        hint="OVERRIDES",
        repeat=Repeat.COMMA,
    )
    check_tensors: Switch = option(False, "--check-tensors", "look for invalid values in the weights while loading")
    lora: Names = option((), "--lora", "LoRA adapters, separated by commas", hint="FILES", repeat=Repeat.COMMA)
    lora_scaled: ScaledFiles = option(
        (),
        "--lora-scaled",
        "LoRA adapters with scales, FILE:SCALE,…; numbered behind those of --lora",
        hint="FILES",
        repeat=Repeat.COMMA,
    )
    lora_init_without_apply: Switch = option(
        False, "--lora-init-without-apply", "load the adapters with scale 0; see POST /lora-adapters"
    )
    control_vector: Names = option(
        (), "--control-vector", "control vectors, separated by commas", hint="FILES", repeat=Repeat.COMMA
    )
    control_vector_scaled: ScaledFiles = option(
        (),
        "--control-vector-scaled",
        "control vectors with scales, FILE:SCALE,…",
        hint="FILES",
        repeat=Repeat.COMMA,
    )
    control_vector_layer_range: LayerRange = option(
        None, "--control-vector-layer-range", "first and last layer they act on", hint="START END"
    )


class LoadOptions(OptionGroup):
    title = "Loading and devices"

    load_mode: LoadMode = option(
        "auto",
        "-lm --load-mode",
        "how the weights come into memory: mapped (mmap), locked (mlock), both, direct I/O (dio), or read (none); "
        "auto: mapped where the device allows",
        env="LOAD_MODE",
        hint="MODE",
    )
    lazy_mode: Literal["on", "auto", "off"] = option(
        "auto",
        "-lzm --lazy-mode",
        "read rows of some huge tensors (per-layer embeddings) from disk when needed; auto: above 4 GiB",
        env="LAZY_MODE",
        hint="on|auto|off",
    )
    numa: NumaStrategy = option(
        None, "--numa", "placement on NUMA systems: distribute, isolate or numactl", env="NUMA", hint="STRATEGY"
    )
    device: Names = option(
        (),
        "-dev --device",
        "devices to offload to, separated by commas (none: CPU only); see --list-devices",
        env="DEVICE",
        hint="DEVICES",
    )
    n_gpu_layers: LayerCount = option(
        "auto",
        "-ngl --gpu-layers --n-gpu-layers",
        "layers kept on the GPU: a number, auto or all",
        env="N_GPU_LAYERS",
        hint="N",
    )
    split_mode: Literal["none", "layer", "row", "tensor"] = option(
        "layer",
        "-sm --split-mode",
        "how several GPUs share the model: one GPU only (none), whole layers, rows or tensors",
        env="SPLIT_MODE",
        hint="MODE",
    )
    tensor_split: Numbers = option(
        (), "-ts --tensor-split", "share of each GPU, e.g. 3,1", env="TENSOR_SPLIT", hint="N0,N1,…"
    )
    main_gpu: int = option(
        0,
        "-mg --main-gpu",
        "GPU of split mode none, or for intermediate results of split mode row",
        env="MAIN_GPU",
        hint="INDEX",
        limits=within(ge=-1),
    )
    override_tensor: str = option(
        "",
        "-ot --override-tensor",
        "buffer type of tensors: PATTERN=TYPE,…",
        env="OVERRIDE_TENSOR",
        hint="RULES",
        repeat=Repeat.COMMA,
    )
    cpu_moe: Switch = option(
        False,
        "-cmoe --cpu-moe",
        "keep all mixture-of-experts weights in main memory",
        env="CPU_MOE",
    )
    n_cpu_moe: int = option(
        0,
        "-ncmoe --n-cpu-moe",
        "the same for the first N layers",
        env="N_CPU_MOE",
        hint="N",
        limits=within(ge=0),
    )
    n_cpu_ffn: int = option(
        0,
        "-ncffn --n-cpu-ffn",
        "keep dense feed-forward weights of the first N layers in main memory",
        env="N_CPU_FFN",
        hint="N",
        limits=within(ge=0),
    )
    repack: Switch = option(
        True, "--repack", "rearrange weights for faster kernels", no="-nr --no-repack", env="REPACK"
    )
    no_host: Switch = option(
        False, "--no-host", "bypass the host buffer, so that extra buffers can be used", env="NO_HOST"
    )
    op_offload: Switch = option(True, "--op-offload", "run operations on host tensors on the device")
    rpc: str = option(
        "",
        "--rpc",
        "RPC servers, host:port,…",
        env="RPC",
        hint="SERVERS",
        unsupported="the llama.cpp that comes with llama-cpp-python is built without the RPC backend",
    )
    fit: OnOff = option(
        "on",
        "-fit --fit",
        "adjust what is unset so that the model fits into device memory",
        env="FIT",
        hint="on|off",
        notice="memory is not fitted yet: what is unset keeps its default",
    )
    fit_target: str = option(
        "1024",
        "-fitt --fit-target",
        "MiB that --fit leaves free on each device",
        env="FIT_TARGET",
        hint="MIB,…",
        notice="memory is not fitted yet",
    )
    fit_ctx: int = option(
        4096,
        "-fitc --fit-ctx",
        "smallest context that --fit may choose",
        env="FIT_CTX",
        hint="N",
        limits=within(ge=0),
        notice="memory is not fitted yet",
    )
