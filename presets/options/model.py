"""The option table, part 2: the model, and how its weights are loaded onto which devices."""

from typing import Any, Literal

from pydantic import SecretStr, model_validator

from .deprecated import LOAD_SWITCHES, load_mode_after
from .option import OptionGroup, OptionReader, Repeat, option, within
from .values import (
    KeyOverrides,
    LayerCount,
    LayerRange,
    Names,
    NumaStrategy,
    Numbers,
    OffBelowZero,
    OnOff,
    ScaledFiles,
    Switch,
)

EXPERT_TENSORS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""Regular expression for the tensors of `--cpu-moe`."""
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]


class ModelOptions(OptionGroup):
    title = "Model"

    model: str = option(
        "", "-m --model", "GGUF file to serve", env="MODEL", hint="FILE", reader=OptionReader.BOTH, per_model=True
    )
    model_url: str = option(
        "",
        "-mu --model-url",
        "URL of the model's file; it is saved as --model if that is given",
        env="MODEL_URL",
        hint="URL",
        reader=OptionReader.BOTH,
        per_model=True,
    )
    docker_repo: str = option(
        "",
        "-dr --docker-repo",
        "model on Docker Hub: [repository/]model[:quantization]",
        env="DOCKER_REPO",
        hint="REPO",
        unsupported="models from Docker Hub are not supported: use --hf-repo or --model",
    )
    hf_repo: str = option(
        "",
        "-hf -hfr --hf-repo",
        "model on Hugging Face, user/model[:quantization]; default: Q4_K_M, then Q8_0, then the first file",
        env="HF_REPO",
        hint="REPO",
        reader=OptionReader.BOTH,
        per_model=True,
    )
    hf_file: str = option(
        "",
        "-hff --hf-file",
        "file in the repository of --hf-repo, instead of a quantization",
        env="HF_FILE",
        hint="FILE",
    )
    hf_token: SecretStr = option(
        SecretStr(""), "-hft --hf-token", "access token for Hugging Face", env="$HF_TOKEN", hint="TOKEN", secret=True
    )
    offline: Switch = option(
        False,
        "--offline",
        "use only cached models, no network",
        env="OFFLINE",
        older_env="$LLAMA_OFFLINE",
        reader=OptionReader.BOTH,
    )
    alias: Names = option(
        (),
        "-a --alias",
        "additional names of the model, separated by commas",
        env="ALIAS",
        hint="NAMES",
        reader=OptionReader.BOTH,
        per_model=True,
    )
    tags: Names = option(
        (),
        "--tags",
        "tags shown with the model, separated by commas; not used for routing",
        env="TAGS",
        hint="TAGS",
        reader=OptionReader.BOTH,
    )
    override_kv: KeyOverrides = option(
        (),
        "--override-kv",
        "replace metadata of the model: KEY=TYPE:VALUE,… with type int, float, bool or str",
        hint="OVERRIDES",
        repeat=Repeat.COMMA,
    )
    check_tensors: Switch = option(False, "--check-tensors", "check the weights for invalid values while loading")
    lora: Names = option((), "--lora", "LoRA adapters, separated by commas", hint="FILES", repeat=Repeat.COMMA)
    lora_scaled: ScaledFiles = option(
        (),
        "--lora-scaled",
        "LoRA adapters with scales, FILE:SCALE,…; their ids follow those of --lora",
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
        None, "--control-vector-layer-range", "first and last layer that use control vectors", hint="START END"
    )


class LoadOptions(OptionGroup):
    title = "Loading and devices"

    load_mode: LoadMode = option(
        "auto",
        "-lm --load-mode",
        "how the weights are loaded: memory-mapped (mmap), locked in memory (mlock), both, direct I/O (dio), or normal "
        "reads (none); auto: mmap if the device supports it",
        env="LOAD_MODE",
        hint="MODE",
    )
    lazy_mode: Literal["on", "auto", "off"] = option(
        "auto",
        "-lzm --lazy-mode",
        "read rows of very large tensors (per-layer embeddings) from disk when needed; auto: above 4 GiB",
        env="LAZY_MODE",
        hint="on|auto|off",
    )
    numa: NumaStrategy = option(
        None, "--numa", "strategy on NUMA systems: distribute, isolate or numactl", env="NUMA", hint="STRATEGY"
    )
    device: Names = option(
        (),
        "-dev --device",
        "devices for offloading, separated by commas (none: CPU only); see --list-devices",
        env="DEVICE",
        hint="DEVICES",
    )
    n_gpu_layers: LayerCount = option(
        "auto",
        "-ngl --gpu-layers --n-gpu-layers",
        "number of layers on the GPU, or auto, or all",
        env="N_GPU_LAYERS",
        hint="N",
    )
    split_mode: Literal["none", "layer", "row", "tensor"] = option(
        "layer",
        "-sm --split-mode",
        "how the model is split over several GPUs: by layer, row or tensor; none: one GPU only",
        env="SPLIT_MODE",
        hint="MODE",
    )
    tensor_split: Numbers = option(
        (), "-ts --tensor-split", "relative share of each GPU, e.g. 3,1", env="TENSOR_SPLIT", hint="N0,N1,…"
    )
    main_gpu: int = option(
        0,
        "-mg --main-gpu",
        "the GPU for split mode none, and for intermediate results in split mode row",
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
        "keep all mixture-of-experts weights in host memory",
        env="CPU_MOE",
    )
    n_cpu_moe: int = option(
        0,
        "-ncmoe --n-cpu-moe",
        "like --cpu-moe, but only for layers below N",
        env="N_CPU_MOE",
        hint="N",
        limits=within(ge=0),
    )
    n_cpu_ffn: int = option(
        0,
        "-ncffn --n-cpu-ffn",
        "keep dense feed-forward weights of layers below N in host memory",
        env="N_CPU_FFN",
        hint="N",
        limits=within(ge=0),
    )
    moe_cache_mib: OffBelowZero = option(
        0,
        "--moe-cache-mib",
        "MiB of device memory for experts whose weights are on the CPU; 0: off",
        env="MOE_CACHE_MIB",
        hint="MIB",
        notice="this llama.cpp has no such cache; results are the same without it",
    )
    repack: Switch = option(
        True, "--repack", "convert weights to a layout for faster kernels", no="-nr --no-repack", env="REPACK"
    )
    no_host: Switch = option(
        False, "--no-host", "do not use the host buffer, so that extra buffers can be used", env="NO_HOST"
    )
    op_offload: Switch = option(True, "--op-offload", "compute operations on host tensors on the device")
    rpc: str = option(
        "",
        "--rpc",
        "RPC servers, host:port,…",
        env="RPC",
        hint="SERVERS",
        unsupported="llama-cpp-python builds llama.cpp without the RPC backend",
    )
    fit: OnOff = option(
        "on",
        "-fit --fit",
        "adjust options that are not set so that the model fits into device memory",
        env="FIT",
        hint="on|off",
        notice="not supported yet: options that are not set keep their defaults",
    )
    fit_target: str = option(
        "1024",
        "-fitt --fit-target",
        "MiB that --fit keeps free on each device",
        env="FIT_TARGET",
        hint="MIB,…",
        notice="--fit is not supported yet",
    )
    fit_ctx: int = option(
        4096,
        "-fitc --fit-ctx",
        "minimum context in tokens that --fit may choose",
        env="FIT_CTX",
        hint="N",
        limits=within(ge=0),
        notice="--fit is not supported yet",
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_switches(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Apply the earlier switches to the load mode, in their order."""
        rest = dict(values)
        for switch in [name for name in values if name in LOAD_SWITCHES]:
            rest["load_mode"] = load_mode_after(rest.get("load_mode", "auto"), switch, rest.pop(switch) == "true")
        return rest
