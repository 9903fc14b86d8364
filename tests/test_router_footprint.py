"""What a model is expected to take, against what the real engine then takes; and what the system says is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from engine_tools import run, running
from llama_corral.presets.gguf_header import Header, Tensor, read_header
from llama_corral.presets.settings import Settings
from llama_corral.router import memory
from llama_corral.router.footprint import Plan, draft_plan_of, estimate, plan_of

MIB = 1 << 20


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
def test_the_estimate_is_what_llama_cpp_takes(models: Path, name: str, options: dict[str, Any]) -> None:
    settings = Settings(**{"model": str(models / name), "ctx_size": 1024, **options})
    expected = estimate([read_header(models / name)], plan_of(settings, has_devices=False))

    async def check() -> None:
        async with running(models / name, **options) as engine:
            taken = engine.memory
            assert taken["device"] == expected.device == 0
            assert taken["host"] == pytest.approx(expected.host, rel=0.1, abs=2 * MIB)

    run(check())


def test_all_parts_of_a_split_model_count(models: Path) -> None:
    parts = [read_header(path) for path in sorted((models / "sharded").glob("*.gguf"))]
    whole = read_header(models / "tiny-llama.gguf")
    assert len(parts) > 1
    assert estimate(parts, Plan()) == estimate([whole], Plan())


def _header(layers: int, **keys: int) -> Header:
    """64 bytes of weights in each layer, 1000 in the table of tokens."""
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


def test_offloaded_layers_are_the_last_ones_and_take_their_cache_along() -> None:
    header = _header(4, context_length=256)
    row = 256 * (4 + 4) * 2
    none = estimate([header], Plan(n_device_layers=0))
    some = estimate([header], Plan(n_device_layers=2))
    everything = estimate([header], Plan(n_device_layers=99))
    assert none.device == 0
    assert some.device == 1000 + 64 + row + some.scratch  # the tied output, copied, and one layer
    assert everything.device == 1000 + 4 * (64 + row) + everything.scratch
    assert everything.host == 1000
    assert estimate([header], Plan(n_device_layers=99, kv_on_device=False)).host == 1000 + 4 * row


def test_experts_that_stay_with_the_machine_are_not_counted_on_the_device() -> None:
    header = _header(4, context_length=256)
    everything = estimate([header], Plan(n_device_layers=99))
    assert everything.device - estimate([header], Plan(n_device_layers=99, n_expert_layers_on_host=3)).device == 3 * 32


def test_a_draft_model_has_types_and_devices_of_its_own() -> None:
    settings = Settings(cache_type_k="f32", cache_type_k_draft="q8_0", n_gpu_layers=3, n_gpu_layers_draft=1)
    plan, draft = plan_of(settings, has_devices=True), draft_plan_of(settings, has_devices=True)
    assert (plan.type_k, plan.n_device_layers) == ("f32", 3)
    assert (draft.type_k, draft.n_device_layers) == ("q8_0", 1)
    assert (draft.n_ctx, draft.n_slots) == (plan.n_ctx, plan.n_slots)
    assert draft_plan_of(Settings(device_draft=("none",)), has_devices=True).n_device_layers == 0


def test_layers_without_keys_of_their_own_cost_only_their_state() -> None:
    tensors = (Tensor("blk.0.ssm_a.weight", (8,), "f32", 0, 32), Tensor("blk.1.attn_q.weight", (8, 8), "f16", 0, 128))
    shape = {"block_count": 2, "embedding_length": 8, "context_length": 256, "attention.head_count": 2}
    shape |= {"ssm.inner_size": 16, "ssm.state_size": 4, "ssm.conv_kernel": 4}
    metadata = {"general.architecture": "x", **{f"x.{key}": value for key, value in shape.items()}}
    footprint = estimate([Header(3, metadata, {}, tensors, 0, 0)], Plan(n_slots=3))
    assert footprint.kv == 3 * 4 * (3 * 16 + 16 * 4) + 256 * 2 * 2 * 4 * 2


@pytest.mark.parametrize("value", ["", "x", "nan"])
def test_a_header_that_says_nothing_costs_its_weights(value: str) -> None:
    header = Header(3, {"general.architecture": value}, {}, (Tensor("w", (4,), "f32", 0, 16),), 0, 0)
    assert estimate([header], Plan()).weights == 16


# -- readings ----------------------------------------------------------------------------------------------------------


def test_the_machine_has_memory_and_more_of_it_than_is_free() -> None:
    reading = memory.read_host()
    assert 0 < reading.free <= reading.total


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("104857600\n")
    (tmp_path / "memory.current").write_text("62914560\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 20971520\nactive_file 7\n")
    assert memory.read_host(tmp_path) == memory.Reading(100 * MIB, 60 * MIB)


@pytest.mark.parametrize("files", [{}, {"memory.max": "max\n"}, {"memory.max": str(1 << 60)}])
def test_no_limit_is_the_whole_machine(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory.read_host(tmp_path).total == memory.read_host().total


def test_the_memory_of_amd_devices_is_in_files(tmp_path: Path) -> None:
    for card, used in (("card0", 100), ("card1", 300)):
        (tmp_path / card / "device").mkdir(parents=True)
        (tmp_path / card / "device" / "mem_info_vram_total").write_text("1000\n")
        (tmp_path / card / "device" / "mem_info_vram_used").write_text(f"{used}\n")
    (tmp_path / "card2" / "device").mkdir(parents=True)  # the mainboard's graphics
    assert memory.read_devices(tmp_path) == memory.Reading(2000, 1600)
    assert memory.read_devices(tmp_path / "nothing") is None


def test_what_is_a_process_own() -> None:
    assert memory.private_bytes(os.getpid()) > 5 * MIB
    assert memory.private_bytes(2**22 + 7) == 0


def test_what_was_swapped_out_counts_and_elsewhere_the_rest(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tpython\nRssAnon:\t    100 kB\nRssFile:\t 9 kB\nVmSwap:\t   20 kB\n")
    assert memory.private_bytes(7, tmp_path) == 120 << 10
    assert memory.private_bytes(os.getpid(), tmp_path / "nothing") > 5 * MIB
