"""Models whose memory does not go back (sliding windows, recurrent states): what is reused, and that it is right."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from engine_tools import ask, run, running
from llama_corral.worker.engine.messages import Finished
from llama_corral.worker.engine.runner import Loaded

FORGETFUL = pytest.mark.parametrize("model", ["tiny-gemma3.gguf", "tiny-mamba.gguf"])
PROMPT = [2, *(5 + i * 7 % 400 for i in range(300))]
SETTINGS: dict[str, Any] = {"parallel": 1, "ctx_size": 1024, "ubatch_size": 64, "cache_ram": 0}


async def alone(loaded: Loaded, prompt: list[int]) -> tuple[int, ...]:
    return (await ask(loaded, prompt, cache_prompt=False).one()).tokens


async def in_turn(path: Path, prompts: list[list[int]], **settings: Any) -> list[Finished]:
    """The results of one prompt after the other, each of them what it would be alone."""
    async with running(path, **{**SETTINGS, **settings}) as engine, engine.use() as loaded:
        expected = [await alone(loaded, prompt) for prompt in prompts]
        await loaded.erase_slot(0)
        results = [await ask(loaded, prompt).one() for prompt in prompts]
        assert [result.tokens for result in results] == expected
        return results


@FORGETFUL
def test_the_same_prompt_goes_on_from_right_before_its_end(models: Path, model: str) -> None:
    async def test() -> None:
        results = await in_turn(models / model, [PROMPT, PROMPT, [*PROMPT, 9, 10]])
        assert [result.timings.cache_n >= len(PROMPT) - 5 for result in results] == [False, True, True]

    run(test())


@FORGETFUL
def test_a_checkpoint_stands_in_for_a_prompt_that_ends_otherwise(models: Path, model: str) -> None:
    async def test() -> None:
        other = [*PROMPT[:-20], *range(30, 60)]
        results = await in_turn(models / model, [PROMPT, other, [9, 8, 7]])
        assert 200 < results[1].timings.cache_n <= len(PROMPT) - 20
        assert results[2].timings.cache_n == 0

    run(test())


@FORGETFUL
def test_without_checkpoints_it_is_computed_anew(models: Path, model: str) -> None:
    async def test() -> None:
        other = [*PROMPT[:50], *range(30, 60)]
        results = await in_turn(models / model, [PROMPT, other], swa_checkpoints=0)
        assert results[1].timings.cache_n == 0

    run(test())


@FORGETFUL
def test_checkpoints_move_to_host_memory_and_back(models: Path, model: str) -> None:
    async def test() -> None:
        other = [*PROMPT[:-20], *range(30, 60)]
        results = await in_turn(models / model, [PROMPT, list(range(50, 150)), other], cache_ram=100)
        assert results[2].timings.cache_n > 200

    run(test())


@FORGETFUL
@pytest.mark.parametrize("unified", [True, False])
def test_a_shared_beginning_is_computed_once(models: Path, model: str, unified: bool) -> None:
    async def test() -> None:
        settings = {**SETTINGS, "parallel": 4, "ctx_size": 4096, "kv_unified": unified}
        async with running(models / model, **settings) as engine, engine.use() as loaded:
            prompts = [[*PROMPT, *range(20 + 10 * k, 30 + 10 * k)] for k in range(4)]
            expected = [await alone(loaded, prompt) for prompt in prompts]
            for slot in range(4):
                await loaded.erase_slot(slot)
            before = engine.snapshot.totals.prompt_tokens
            results = await asyncio.gather(*(ask(loaded, prompt).one() for prompt in prompts))
            assert [result.tokens for result in results] == expected
            assert [result.timings.cache_n for result in results] == [0, *[len(PROMPT)] * 3]
            assert engine.snapshot.totals.prompt_tokens - before == len(PROMPT) + 4 * 10

    run(test())


@FORGETFUL
def test_a_slot_file_brings_it_all_back(models: Path, model: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(models / model, **SETTINGS) as engine, engine.use() as loaded:
            first = await ask(loaded, PROMPT).one()
            longer = [*PROMPT, *first.tokens]
            saved = await loaded.save_slot(0, tmp_path / "slot")
            expected = await alone(loaded, longer)
            assert (await loaded.restore_slot(0, tmp_path / "slot")).n_tokens == saved.n_tokens
            again = await ask(loaded, longer).one()
            assert (again.tokens, again.timings.prompt_n) == (expected, 1)

    run(test())


@FORGETFUL
def test_who_leaves_in_the_middle_of_a_batch_harms_nobody(models: Path, model: str) -> None:
    async def test() -> None:
        settings = {**SETTINGS, "parallel": 3, "ctx_size": 3072}
        async with running(models / model, **settings) as engine, engine.use() as loaded:
            prompts = [[*PROMPT, *range(20 + 10 * k, 30 + 10 * k)] for k in range(3)]
            expected = [await alone(loaded, prompt) for prompt in prompts]
            for _ in range(8):  # the interruption may come at any moment
                for slot in range(3):
                    await loaded.erase_slot(slot)
                leaving = ask(loaded, prompts[0], stream=True)
                staying = [ask(loaded, prompt) for prompt in prompts[1:]]
                await leaving.until(bool)
                leaving.ticket.cancel()
                assert [(await request.one()).tokens for request in staying] == expected[1:]

    run(test())
