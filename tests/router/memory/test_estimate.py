"""Test the memory estimate against the real engine's allocations, and the readings of host memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from engine_tools import running
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.hub.gguf_header import GgufError, Header, Tensor, read_header
from llama_corral.presets.options.settings import Settings
from llama_corral.router.memory import host
from llama_corral.router.memory.devices import Devices, SystemDevice
from llama_corral.router.memory.estimate import FootprintOptions, estimate
from llama_corral.router.memory.options import draft_footprint_options, footprint_options, projector_device
from llama_corral.router.memory.requirements import MemoryRequirements
from llama_corral.router.placement.device_split import Need, Offload
from llama_corral.router.placement.memory_amounts import Limit, Space
from msgspec.structs import replace
from router_tools import preset

MIB = 1 << 20
TWO = Devices([SystemDevice("CUDA0", 24, 24), SystemDevice("CUDA1", 16, 16)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny-llama.gguf", {}),
        ("tiny-llama.gguf", {"ctx_size": 16384, "parallel": 4}),
        ("tiny-llama.gguf", {"ctx_size": 16384, "cache_type_k": "f32", "cache_type_v": "bf16"}),
        ("tiny-llama.gguf", {"ctx_size": 8192, "flash_attn": "off"}),
        ("tiny-llama-long.gguf", {"ctx_size": 0}),
        ("tiny-gemma3.gguf", {"ctx_size": 8192}),
        ("tiny-gemma3.gguf", {"ctx_size": 8192, "parallel": 2}),
        ("tiny-gemma3.gguf", {"ctx_size": 8192, "swa_full": True}),
        ("tiny-mamba.gguf", {"ctx_size": 4096}),
        ("tiny-bert.gguf", {"embeddings": True}),
    ],
)
async def test_the_estimate_matches_llama_cpps_allocations(models: Path, name: str, options: dict[str, Any]) -> None:
    settings = Settings.of(**{"model": str(models / name), "ctx_size": 1024, **options})
    expected = estimate([read_header(models / name)], footprint_options(settings, Devices()))

    async with running(models / name, **options) as engine:
        taken = engine.memory_usage
        assert not taken.devices
        assert not expected.need.space.devices
        assert taken.host == pytest.approx(expected.need.space.host, rel=0.1, abs=2 * MIB)


def test_all_files_of_a_split_model_count(models: Path) -> None:
    parts = [read_header(path) for path in sorted((models / "sharded").glob("*.gguf"))]
    whole = read_header(models / "tiny-llama.gguf")
    assert len(parts) > 1
    assert estimate(parts, FootprintOptions()) == estimate([whole], FootprintOptions())


def _header(layers: int, **keys: int) -> Header:
    """Return a header with 64 bytes of weights in each layer and 1000 in the token embeddings."""
    tensors = [Tensor("token_embd.weight", (8, 100), "f16", 0, 1000)]
    for layer in range(layers):
        tensors += [
            Tensor(f"blk.{layer}.attn_k.weight", (8, 4), "f16", 0, 16),
            Tensor(f"blk.{layer}.attn_v.weight", (8, 4), "f16", 0, 16),
            Tensor(f"blk.{layer}.ffn_up_exps.weight", (8, 4), "f16", 0, 32),
        ]
    metadata: dict[str, Any] = {"general.architecture": "llama", "llama.block_count": layers}
    metadata |= {f"llama.{key}": value for key, value in keys.items()}
    return Header(3, metadata, {}, tuple(tensors), 0, 0)


def _on_one(layers: int, **options: Any) -> FootprintOptions:
    n_expert_layers_on_host = options.pop("n_expert_layers_on_host", 0)
    return FootprintOptions(
        n_expert_layers_on_host=n_expert_layers_on_host, offload=Offload(layers, ("CUDA0",), **options)
    )


def test_offloaded_layers_are_the_last_ones_with_their_kv_cache() -> None:
    header = _header(4, context_length=256)
    row = 256 * (4 + 4) * 2
    none, some, everything = (estimate([header], plan) for plan in (FootprintOptions(), _on_one(2), _on_one(99)))
    assert none.need == Need(Space(none.weights + none.kv + none.scratch))
    assert some.need.space.device == 1000 + 64 + row + some.scratch  # the tied output, copied, and one layer
    mask = 512 * 256 * 2  # the attention mask, an input that the host sends
    assert everything.need.space == Space(1000 + mask, {"CUDA0": 1000 + 4 * (64 + row) + everything.scratch})
    assert estimate([header], _on_one(99, with_kv=False)).need.space.host == 1000 + 4 * row + mask
    assert some.need.space.host == 1000 + 3 * (64 + row) + mask + some.scratch, "it computes what stays with it"


def test_experts_on_the_host_are_not_counted_on_the_device() -> None:
    header = _header(4, context_length=256)
    everything = estimate([header], _on_one(99)).need.space
    assert everything.device - estimate([header], _on_one(99, n_expert_layers_on_host=3)).need.space.device == 3 * 32


@given(
    layers=st.integers(1, 9),
    n=st.integers(0, 12),
    devices=st.integers(1, 3),
    mode=st.sampled_from(["layer", "row", "tensor"]),
    shares=st.lists(st.sampled_from([0, 1, 2.5]), max_size=3).map(tuple),
    free=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    with_kv=st.booleans(),
)
def test_the_sum_over_memories_is_the_whole_footprint(
    layers: int,
    n: int,
    devices: int,
    mode: str,
    shares: tuple[float, ...],
    free: list[int],
    with_kv: bool,
) -> None:
    names = ("CUDA0", "CUDA1", "CUDA2")[:devices]
    offload = Offload(n, names, mode, shares if any(shares[:devices]) else (), (3.0, 2.0, 1.0)[:devices], with_kv)
    footprint = estimate([_header(layers, context_length=256)], FootprintOptions(offload=offload))
    space = footprint.need.placed_within(Limit(None, dict(zip(names, free, strict=False))))
    inputs = 512 * 256 * 2
    assert footprint.scratch == inputs, "a model without width"
    n_scratch, rest = divmod(space.total - footprint.weights - footprint.kv, inputs)
    assert rest == 0
    on_host = 0 if n == 0 else 1 if n > layers else 2
    if mode == "row" and n:  # weights are on all devices, layers may not be
        assert 1 <= n_scratch - on_host <= len(space.devices)
    else:
        assert n_scratch - on_host == max(1, len(space.devices))
    assert bool(space.devices) == (n > 0)


def test_batches_in_a_pipeline_cost_copies_of_the_inputs() -> None:
    header = _header(4, context_length=256, embedding_length=8)
    offload = Offload(99, ("CUDA0", "CUDA1"))
    alone, pipelined = (
        estimate([header], FootprintOptions(offload=replace(offload, pipelines=is_on))) for is_on in (False, True)
    )
    assert pipelined.scratch - alone.scratch == 3 * 512 * (8 * 4 + 256 * 2)
    partly = estimate([header], FootprintOptions(offload=replace(offload, pipelines=True, n_layers=4)))
    assert partly.scratch == alone.scratch, "only where all layers are on devices"


def test_recurrent_layers_cost_only_their_state() -> None:
    tensors = (Tensor("blk.0.ssm_a.weight", (8,), "f32", 0, 32), Tensor("blk.1.attn_q.weight", (8, 8), "f16", 0, 128))
    shape = {"block_count": 2, "embedding_length": 8, "context_length": 256, "attention.head_count": 2}
    shape |= {"ssm.inner_size": 16, "ssm.state_size": 4, "ssm.conv_kernel": 4}
    metadata = {"general.architecture": "x", **{f"x.{key}": value for key, value in shape.items()}}
    footprint = estimate([Header(3, metadata, {}, tensors, 0, 0)], FootprintOptions(n_slots=3))
    assert footprint.kv == 3 * 4 * (3 * 16 + 16 * 4) + 256 * 2 * 2 * 4 * 2


@pytest.mark.parametrize("value", ["", "x", "nan"])
def test_a_header_without_dimensions_costs_only_its_weights(value: str) -> None:
    header = Header(3, {"general.architecture": value}, {}, (Tensor("w", (4,), "f32", 0, 16),), 0, 0)
    assert estimate([header], FootprintOptions()).weights == 16


# -- options ---------------------------------------------------------------------------------------------------------


def test_devices_are_all_or_those_of_the_preset_in_its_order() -> None:
    def names(**options: Any) -> tuple[str, ...]:
        return footprint_options(Settings.of(**options), TWO).offload.devices

    assert names() == ("CUDA0", "CUDA1")
    assert names(device=("CUDA1", "CUDA0")) == ("CUDA1", "CUDA0")
    assert names(device=("Vulkan1",)) == ("CUDA1",)
    assert names(device=("none",)) == ()
    assert names(split_mode="none") == ("CUDA0",)
    assert names(split_mode="none", main_gpu=1) == ("CUDA1",)
    assert names(split_mode="none", main_gpu=1, device=("CUDA1", "CUDA0")) == ("CUDA0",), "counted among those named"
    assert names(split_mode="none", main_gpu=-1) == ()
    assert names(main_gpu=1) == ("CUDA0", "CUDA1")
    assert footprint_options(Settings.of(device=("CUDA0",)), Devices()).offload == Offload()


def test_shares_without_a_device_and_zero_shares_are_ignored() -> None:
    def shares(*given: float) -> tuple[float, ...]:
        return footprint_options(Settings.of(tensor_split=given), TWO).offload.shares

    assert shares(3, 1, 5) == (3, 1)
    assert shares(0, 0, 5) == shares() == ()


def test_a_pipeline_needs_several_devices_with_whole_layers_and_their_cache() -> None:
    def pipelines(**options: Any) -> bool:
        return footprint_options(Settings.of(**options), TWO).offload.pipelines

    assert pipelines()
    for options in ({"device": ("CUDA0",)}, {"split_mode": "row"}, {"kv_offload": False}, {"cpu_moe": True}):
        assert not pipelines(**options)


def test_a_draft_model_has_its_own_kv_types_and_devices() -> None:
    settings = Settings.of(cache_type_k="f32", cache_type_k_draft="q8_0", n_gpu_layers=3, n_gpu_layers_draft=1)
    plan, draft = footprint_options(settings, TWO), draft_footprint_options(settings, TWO)
    assert (plan.type_k, plan.offload.n_layers) == ("f32", 3)
    assert (draft.type_k, draft.offload.n_layers) == ("q8_0", 1)
    assert (draft.n_ctx, draft.n_slots) == (plan.n_ctx, plan.n_slots)
    assert not draft_footprint_options(Settings.of(device_draft=("none",)), TWO).offload.devices
    assert draft_footprint_options(Settings.of(device=("CUDA1",)), TWO).offload.devices == ("CUDA1",), (
        "its main model's"
    )
    one = Settings.of(device_draft=("CUDA1",), split_mode="none", main_gpu=1)
    assert draft_footprint_options(one, TWO).offload.devices == ("CUDA1",), "one device is not chosen from"


def test_a_projector_goes_to_its_own_device_or_the_first() -> None:
    def device(**options: Any) -> str:
        return projector_device(Settings.of(**options), TWO)

    assert device() == "CUDA0"
    assert device(device=("CUDA1", "CUDA0"), main_gpu=1) == "CUDA1"
    assert device(mmproj_device="CUDA1") == "CUDA1"
    assert device(mmproj_offload=False) == device(mmproj_device="none") == device(device=("none",)) == ""
    assert projector_device(Settings.of(), Devices()) == ""


# -- readings ----------------------------------------------------------------------------------------------------------


def test_the_machine_has_more_memory_than_is_free() -> None:
    reading = host.read_host_memory()
    assert 0 < reading.free <= reading.total


def test_free_memory_in_a_container_follows_its_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("104857600\n")
    (tmp_path / "memory.current").write_text("62914560\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 20971520\nactive_file 7\n")
    assert host.read_host_memory(tmp_path) == host.HostMemory(100 * MIB, 60 * MIB)


@pytest.mark.parametrize("files", [{}, {"memory.max": "max\n"}, {"memory.max": str(1 << 60)}])
def test_no_limit_is_the_whole_machine(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert host.read_host_memory(tmp_path).total == host.read_host_memory().total


def test_private_bytes_of_a_process() -> None:
    assert host.private_bytes(os.getpid()) > 5 * MIB
    assert host.private_bytes(2**22 + 7) == 0


def test_private_bytes_include_swap_and_work_without_proc(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tpython\nRssAnon:\t    100 kB\nRssFile:\t 9 kB\nVmSwap:\t   20 kB\n")
    assert host.private_bytes(7, tmp_path) == 120 << 10
    assert host.private_bytes(os.getpid(), tmp_path / "nothing") > 5 * MIB


def test_the_limit_of_a_slot_does_not_make_the_cache_smaller(models: Path) -> None:
    header = read_header(models / "tiny-llama.gguf")
    free = footprint_options(Settings.of(ctx_size=8192), Devices())
    limited = footprint_options(Settings.of(ctx_size=8192, kv_unified_per_slot=256), Devices())
    assert estimate([header], limited) == estimate([header], free)


def test_a_draft_model_is_counted_with_the_context_of_the_main_model(models: Path) -> None:
    main, draft = models / "tiny-llama.gguf", models / "tiny-llama-long.gguf"
    assert read_header(main).metadata["llama.context_length"] != read_header(draft).metadata["llama.context_length"]
    requirements = MemoryRequirements({}, Devices())
    alone, both = (
        requirements.expected(preset("m", str(main), options=options))
        for options in ({"cache_ram": 0}, {"cache_ram": 0, "model_draft": str(draft)})
    )
    assert alone is not None
    assert both is not None
    n_ctx = footprint_options(Settings(), Devices()).context_of(read_header(main)).n_ctx
    added = estimate([read_header(draft)], FootprintOptions(n_ctx=n_ctx)).need.space.host
    assert both.space.host - alone.space.host == added


_DIMENSIONS = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.sliding_window", "ssm.inner_size", "ssm.state_size",
    "wkv.head_size", "expert_used_count", "attention.sliding_window_pattern",
)  # fmt: skip
_CLAIMS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=3), st.lists(st.integers(-9, 2**64 - 1)).map(tuple)
)
_NAMES = st.sampled_from(
    [
        "blk.0.attn_k.weight",
        "blk.0.attn_v.weight",
        "blk.0.ssm_a",
        "blk.",
        "blk.x",
        "blk.7",
        "blk.99999999999.attn_k",
        "",
    ]
)


@given(
    st.dictionaries(st.sampled_from(_DIMENSIONS), _CLAIMS),
    st.lists(st.tuples(_NAMES, st.lists(st.integers(0, 2**64 - 1), max_size=4).map(tuple))),
    st.booleans(),
)
def test_a_file_that_claims_anything_has_an_estimate_or_a_clear_error(
    claims: dict[str, Any], tensors: list[tuple[str, tuple[int, ...]]], flash: bool
) -> None:
    metadata = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in claims.items()}}
    infos = tuple(Tensor(name, shape, "f16", 0, 16) for name, shape in tensors)
    with contextlib.suppress(GgufError):
        found = estimate([Header(3, metadata, {}, infos, 0, 0)], FootprintOptions(flash_attention=flash))
        assert 0 <= found.need.space.host < 2**62


def test_many_layers_cost_nothing() -> None:
    """The work grows with the layers, so their number is limited before anything is calculated for them."""
    with pytest.raises(GgufError, match="claims to have 4294967295 layers, the limit is 1024: corrupt"):
        estimate(
            [replace(_header(1), metadata={"llama.block_count": 2**32 - 1, "general.architecture": "llama"})],
            _on_one(1),
        )
