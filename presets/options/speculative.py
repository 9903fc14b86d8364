"""The option table, part 7: speculative decoding."""

from typing import Literal

from .option import OptionGroup, Repeat, option, within
from .values import DRAFT_KINDS, DraftKinds, KvType, LayerCount, Names, Numbers, Switch

_BUILT = DRAFT_KINDS[:8]
_UNSUPPORTED = "draft-eagle3, -dflash and -dspark need states of inner layers, which the bindings cannot read"
_SPLIT = "drafts do not branch, as in llama-server"
_ON_HOST = "draft tokens are sampled on the host, as in llama-server"
_SCHEDULING = "the bindings have no access to thread pools"


class DraftOptions(OptionGroup):
    title = "Speculative decoding"

    spec_type: DraftKinds = option(
        ("none",),
        "--spec-type",
        "types of drafts, tried in order; a draft model implies draft-simple",
        env="SPEC_TYPE",
        hint="TYPES",
        repeat=Repeat.COMMA,
        unsupported=_UNSUPPORTED,
        built=_BUILT,
    )
    model_draft: str = option(
        "",
        "--spec-draft-model -md --model-draft",
        "GGUF file of the draft model",
        env="SPEC_DRAFT_MODEL",
        older_env="MODEL_DRAFT",
        hint="FILE",
    )
    hf_repo_draft: str = option(
        "",
        "--spec-draft-hf -hfd -hfrd --hf-repo-draft",
        "draft model on Hugging Face, user/model[:quantization]",
        env="SPEC_DRAFT_HF_REPO",
        older_env="HFD_REPO",
        hint="REPO",
    )
    spec_draft_n_max: int = option(
        3,
        "--spec-draft-n-max",
        "maximum number of tokens per draft",
        older="--draft --draft-n --draft-max",
        env="SPEC_DRAFT_N_MAX",
        older_env="DRAFT_MAX",
        hint="N",
        limits=within(ge=0),
    )
    spec_draft_n_min: int = option(
        0,
        "--spec-draft-n-min",
        "minimum number of tokens per draft",
        older="--draft-min --draft-n-min",
        env="SPEC_DRAFT_N_MIN",
        older_env="DRAFT_MIN",
        hint="N",
    )
    spec_draft_sampling: Literal["greedy", "probabilistic"] = option(
        "greedy",
        "--spec-draft-sampling",
        "how the draft model's tokens are chosen",
        env="SPEC_DRAFT_SAMPLING",
        hint="HOW",
        notice="drafts are always greedy; this changes only how many of them are accepted",
    )
    draft_p_min: float = option(
        0.0,
        "--spec-draft-p-min --draft-p-min",
        "minimum probability of a draft token",
        env="SPEC_DRAFT_P_MIN",
        older_env="DRAFT_P_MIN",
        hint="P",
    )
    draft_p_split: float = option(
        0.1,
        "--spec-draft-p-split --draft-p-split",
        "minimum probability for a branch of a draft",
        env="SPEC_DRAFT_P_SPLIT",
        hint="P",
        notice=_SPLIT,
    )
    spec_draft_backend_sampling: Switch = option(
        True,
        "--spec-draft-backend-sampling",
        "sample drafts on the device",
        env="SPEC_DRAFT_BACKEND_SAMPLING",
        notice=_ON_HOST,
    )
    spec_synth_len: float = option(
        -1.0,
        "--spec-synth-len",
        "simulate this mean length of accepted drafts, for benchmarks",
        env="SPEC_SYNTH_LEN",
        hint="L",
    )
    spec_synth_rates: Numbers = option(
        (),
        "--spec-synth-rates",
        "simulate these acceptance rates by position, for benchmarks",
        env="SPEC_SYNTH_RATES",
        hint="P0,P1,…",
    )
    lookup_cache_static: str = option("", "-lcs --lookup-cache-static", "n-gram file, only read", hint="FILE")
    lookup_cache_dynamic: str = option("", "-lcd --lookup-cache-dynamic", "n-gram file, read and updated", hint="FILE")


class DraftModelOptions(OptionGroup):
    title = "Speculative decoding: loading the draft model"

    threads_draft: int = option(-1, "--spec-draft-threads -td --threads-draft", "as --threads", hint="N")
    threads_batch_draft: int = option(
        -1, "--spec-draft-threads-batch -tbd --threads-batch-draft", "as --threads-batch", hint="N"
    )
    cpu_mask_draft: str = option(
        "", "--spec-draft-cpu-mask -Cd --cpu-mask-draft", "as --cpu-mask", hint="MASK", notice=_SCHEDULING
    )
    cpu_range_draft: str = option(
        "", "--spec-draft-cpu-range -Crd --cpu-range-draft", "as --cpu-range", hint="LO-HI", notice=_SCHEDULING
    )
    cpu_strict_draft: Switch = option(
        False, "--spec-draft-cpu-strict --cpu-strict-draft", "as --cpu-strict", hint="0|1", notice=_SCHEDULING
    )
    prio_draft: int = option(
        0, "--spec-draft-prio --prio-draft", "as --prio", hint="N", limits=within(0, 3), notice=_SCHEDULING
    )
    poll_draft: int = option(50, "--spec-draft-poll --poll-draft", "as --poll", hint="0…100", notice=_SCHEDULING)
    cpu_mask_batch_draft: str = option(
        "",
        "--spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft",
        "as --cpu-mask-batch",
        hint="MASK",
        notice=_SCHEDULING,
    )
    cpu_range_batch_draft: str = option(
        "",
        "--spec-draft-cpu-range-batch -Crbd --cpu-range-batch-draft",
        "as --cpu-range-batch",
        hint="LO-HI",
        notice=_SCHEDULING,
    )
    cpu_strict_batch_draft: Switch = option(
        False,
        "--spec-draft-cpu-strict-batch --cpu-strict-batch-draft",
        "as --cpu-strict-batch",
        hint="0|1",
        notice=_SCHEDULING,
    )
    prio_batch_draft: int = option(
        0,
        "--spec-draft-prio-batch --prio-batch-draft",
        "as --prio-batch",
        hint="N",
        limits=within(0, 3),
        notice=_SCHEDULING,
    )
    poll_batch_draft: int = option(
        50,
        "--spec-draft-poll-batch --poll-batch-draft",
        "as --poll-batch",
        hint="0…100",
        notice=_SCHEDULING,
    )
    cache_type_k_draft: KvType = option(
        "f16",
        "--spec-draft-type-k -ctkd --cache-type-k-draft",
        "as --cache-type-k",
        env="SPEC_DRAFT_CACHE_TYPE_K",
        older_env="CACHE_TYPE_K_DRAFT",
        hint="TYPE",
    )
    cache_type_v_draft: KvType = option(
        "f16",
        "--spec-draft-type-v -ctvd --cache-type-v-draft",
        "as --cache-type-v",
        env="SPEC_DRAFT_CACHE_TYPE_V",
        older_env="CACHE_TYPE_V_DRAFT",
        hint="TYPE",
    )
    override_tensor_draft: str = option(
        "",
        "--spec-draft-override-tensor -otd --override-tensor-draft",
        "as --override-tensor",
        hint="RULES",
        repeat=Repeat.COMMA,
    )
    cpu_moe_draft: Switch = option(
        False,
        "--spec-draft-cpu-moe -cmoed --cpu-moe-draft",
        "as --cpu-moe",
        env="SPEC_DRAFT_CPU_MOE",
        older_env="CPU_MOE_DRAFT",
    )
    n_cpu_moe_draft: int = option(
        0,
        "--spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed --n-cpu-moe-draft",
        "as --n-cpu-moe",
        env="SPEC_DRAFT_N_CPU_MOE",
        older_env="N_CPU_MOE_DRAFT",
        hint="N",
        limits=within(ge=0),
    )
    device_draft: Names = option((), "--spec-draft-device -devd --device-draft", "as --device", hint="DEVICES")
    n_gpu_layers_draft: LayerCount = option(
        "auto",
        "--spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft",
        "as --n-gpu-layers",
        env="N_GPU_LAYERS_DRAFT",
        hint="N",
    )


def _length(default: int, flag: str, text: str, least: int = 1, most: int | None = 1024) -> int:
    value: int = option(default, flag, text, hint="N", limits=within(least, most))
    return value


class NgramOptions(OptionGroup):
    title = "Speculative decoding: n-grams"

    spec_ngram_mod_n_min: int = _length(48, "--spec-ngram-mod-n-min", "ngram-mod: fewest tokens", least=0)
    spec_ngram_mod_n_max: int = _length(64, "--spec-ngram-mod-n-max", "ngram-mod: most tokens", least=0)
    spec_ngram_mod_n_match: int = _length(24, "--spec-ngram-mod-n-match", "ngram-mod: tokens looked up")
    spec_ngram_simple_size_n: int = _length(12, "--spec-ngram-simple-size-n", "ngram-simple: tokens looked up")
    spec_ngram_simple_size_m: int = _length(48, "--spec-ngram-simple-size-m", "ngram-simple: tokens drafted")
    spec_ngram_simple_min_hits: int = _length(1, "--spec-ngram-simple-min-hits", "ngram-simple: fewest hits", most=None)
    spec_ngram_map_k_size_n: int = _length(12, "--spec-ngram-map-k-size-n", "ngram-map-k: tokens looked up")
    spec_ngram_map_k_size_m: int = _length(48, "--spec-ngram-map-k-size-m", "ngram-map-k: tokens drafted")
    spec_ngram_map_k_min_hits: int = _length(1, "--spec-ngram-map-k-min-hits", "ngram-map-k: fewest hits", most=None)
    spec_ngram_map_k4v_size_n: int = _length(12, "--spec-ngram-map-k4v-size-n", "ngram-map-k4v: tokens looked up")
    spec_ngram_map_k4v_size_m: int = _length(48, "--spec-ngram-map-k4v-size-m", "ngram-map-k4v: tokens drafted")
    spec_ngram_map_k4v_min_hits: int = _length(
        1, "--spec-ngram-map-k4v-min-hits", "ngram-map-k4v: fewest hits", most=None
    )
