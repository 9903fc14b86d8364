"""The engine on real tiny models: a full KV cache, invalid requests, models and options that fail to load."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_tools import ask, running
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.engine.messages import Grammar, Sampling
from llama_corral.worker.engine.runner import LoadError


async def test_a_full_pool_clears_idle_slots_first(llama: Path) -> None:
    async with running(llama, ctx_size=256, parallel=2, kv_unified=True) as engine, engine.use() as loaded:
        first = await ask(loaded, [5] * 150, n_predict=4, id_slot=0).one()
        second = await ask(loaded, [6] * 150, n_predict=4, id_slot=1).one()
        assert (first.n_decoded, second.n_decoded) == (4, 4)
        assert (await loaded.slots())[0].n_prompt_tokens == 0


async def test_a_pool_too_small_for_all_fails_all(llama: Path) -> None:
    async with running(llama, ctx_size=256, parallel=2, kv_unified=True) as engine, engine.use() as loaded:
        requests = [ask(loaded, [i] * 120, n_predict=-1, sampling=Sampling(ignore_eos=True)) for i in (5, 6)]
        for request in requests:
            error = await request.error()
            assert (error.status, error.message) == (500, "Context size has been exceeded.")
        assert (await ask(loaded, [5] * 120, n_predict=4).one()).n_decoded == 4, "and it goes on"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repeat_penalty=0.0),
        Sampling(frequency_penalty=float("inf")),
        Sampling(grammar=Grammar("root ::= ((")),
        Sampling(samplers=("top_k", "nonsense")),
    ],
)
async def test_invalid_sampling_parameters_are_rejected(llama: Path, sampling: Sampling) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        error = await ask(loaded, sampling=sampling, n=2).error()
        assert error.status == 400
        assert error.message.startswith("Failed to initialize samplers: ")
        assert (await ask(loaded).one()).n_decoded == 16


async def test_a_grammar_that_allows_no_token_fails_only_its_request(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        other = ask(loaded, n_predict=30)
        failing = ask(loaded, sampling=Sampling(grammar=Grammar('root ::= "a"'), ignore_eos=True))
        assert isinstance(await failing.error(), InvalidRequest)
        assert (await other.one()).n_decoded == 30


async def test_invalid_tokens_are_rejected(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        for tokens in ([100_000], [-1]):
            with pytest.raises(InvalidRequest):
                ask(loaded, tokens)
        assert (await ask(loaded, []).one()).n_decoded == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.gguf", "No such file"),
        ("truncated.gguf", "corrupted or incomplete"),
        ("not-a-model.gguf", "not a GGUF"),
        ("empty.gguf", "not a GGUF"),
        (".", "Is a directory"),
    ],
)
async def test_a_failed_load_reports_the_reason(models: Path, name: str, says: str) -> None:
    with pytest.raises(LoadError, match=says):
        async with running(models / name):
            pass


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": ("nosuch",)}, "no device 'nosuch'; known: "),
        ({"override_kv": ("general.architecture=str:nonsense",)}, "unknown model architecture"),
    ],
)
async def test_an_option_that_llama_cpp_rejects_fails_the_load(
    llama: Path, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(LoadError, match=says):
        async with running(llama, **settings):
            pass


async def test_options_reach_llama_cpp(llama: Path) -> None:
    settings = {
        "device": ("none",),
        "n_gpu_layers": 0,
        "load_mode": "none",
        "cache_type_k": "q8_0",
        "cache_type_v": "f32",
        "flash_attn": "off",
        "tensor_split": (1.0,),
        "override_kv": ("llama.context_length=int:512", "general.name=str:Other"),
        "repack": False,
        "check_tensors": True,
        "warmup": False,
    }
    async with running(llama, **{**settings, "cache_type_v": "f16"}) as engine, engine.use() as loaded:
        assert loaded.info.n_ctx == loaded.info.n_ctx_train == 512
        assert (await ask(loaded).one()).n_decoded == 16
