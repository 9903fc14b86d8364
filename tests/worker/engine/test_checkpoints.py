"""Models whose memory cannot go back (sliding windows, recurrent states): what is reused, and that it is correct."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import chat_templates
import numpy as np
import pytest
from engine_tools import ask, running
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.api.request.delimiters import MessageDelimiter, user_starts
from llama_corral.worker.chat.template.capabilities import probe
from llama_corral.worker.chat.template.template import ChatTemplate
from llama_corral.worker.chat.template.turns import detect_delimiters
from llama_corral.worker.engine.batching.checkpoints import Checkpoint, CheckpointRules
from llama_corral.worker.engine.messages import Finished
from llama_corral.worker.engine.runner import LoadedModel
from programs import Programs

FORGETFUL = pytest.mark.parametrize("model", ["tiny-gemma3.gguf", "tiny-mamba.gguf"])
PROMPT = [2, *(5 + i * 7 % 400 for i in range(300))]
SETTINGS: dict[str, Any] = {"parallel": 1, "ctx_size": 1024, "ubatch_size": 64, "cache_ram": 0}


async def alone(loaded: LoadedModel, prompt: list[int]) -> tuple[int, ...]:
    return (await ask(loaded, prompt, cache_prompt=False).one()).tokens


async def in_turn(path: Path, prompts: list[list[int]], **settings: Any) -> list[Finished]:
    """Return the results of prompts, one after the other; check that each equals the result without a cache."""
    async with running(path, **{**SETTINGS, **settings}) as engine, engine.use() as loaded:
        expected = [await alone(loaded, prompt) for prompt in prompts]
        await loaded.erase_slot(0)
        results = [await ask(loaded, prompt).one() for prompt in prompts]
        assert [result.tokens for result in results] == expected
        return results


@FORGETFUL
async def test_a_repeated_prompt_continues_just_before_its_end(models: Path, model: str) -> None:
    results = await in_turn(models / model, [PROMPT, PROMPT, [*PROMPT, 9, 10]])
    assert [result.timings.cache_n >= len(PROMPT) - 5 for result in results] == [False, True, True]


@FORGETFUL
async def test_a_checkpoint_is_used_for_a_prompt_with_another_end(models: Path, model: str) -> None:
    other = [*PROMPT[:-20], *range(30, 60)]
    results = await in_turn(models / model, [PROMPT, other, [9, 8, 7]])
    assert 200 < results[1].timings.cache_n <= len(PROMPT) - 20
    assert results[2].timings.cache_n == 0


@FORGETFUL
async def test_without_checkpoints_a_prompt_is_computed_again(models: Path, model: str) -> None:
    other = [*PROMPT[:50], *range(30, 60)]
    results = await in_turn(models / model, [PROMPT, other], swa_checkpoints=0)
    assert results[1].timings.cache_n == 0


@FORGETFUL
async def test_checkpoints_move_to_host_memory_and_back(models: Path, model: str) -> None:
    other = [*PROMPT[:-20], *range(30, 60)]
    results = await in_turn(models / model, [PROMPT, list(range(50, 150)), other], cache_ram=100)
    assert results[2].timings.cache_n > 200


@FORGETFUL
@pytest.mark.parametrize("unified", [True, False])
async def test_a_shared_prefix_is_computed_once(models: Path, model: str, unified: bool) -> None:
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


@FORGETFUL
async def test_a_slot_file_restores_the_whole_state(models: Path, model: str, tmp_path: Path) -> None:
    async with running(models / model, **SETTINGS) as engine, engine.use() as loaded:
        first = await ask(loaded, PROMPT).one()
        longer = [*PROMPT, *first.tokens]
        saved = await loaded.save_slot(0, tmp_path / "slot")
        expected = await alone(loaded, longer)
        assert (await loaded.restore_slot(0, tmp_path / "slot")).n_tokens == saved.n_tokens
        again = await ask(loaded, longer).one()
        assert (again.tokens, again.timings.prompt_n) == (expected, 1)


@FORGETFUL
async def test_a_cancel_during_a_batch_does_not_affect_other_requests(models: Path, model: str) -> None:
    settings = {**SETTINGS, "parallel": 3, "ctx_size": 3072}
    async with running(models / model, **settings) as engine, engine.use() as loaded:
        prompts = [[*PROMPT, *range(20 + 10 * k, 30 + 10 * k)] for k in range(3)]
        expected = [await alone(loaded, prompt) for prompt in prompts]
        for _ in range(8):  # the abort may occur at any moment
            for slot in range(3):
                await loaded.erase_slot(slot)
            leaving = ask(loaded, prompts[0], stream=True)
            staying = [ask(loaded, prompt) for prompt in prompts[1:]]
            await leaving.until(bool)
            leaving.ticket.cancel()
            assert [(await request.one()).tokens for request in staying] == expected[1:]


# -- checkpoints at user messages ------------------------------------------------------------------------------------

TURN = [7, 8, 9]


@FORGETFUL
async def test_an_edited_user_message_continues_from_its_beginning(models: Path, model: str) -> None:
    settings = {**SETTINGS, "ubatch_size": 32}
    async with running(models / model, **settings) as engine, engine.use() as loaded:
        begun = PROMPT[:200]
        first = [*begun, *TURN, *(20 + i * 3 % 400 for i in range(600))]  # longer than the window
        second = [*begun, *TURN, *range(120, 220)]
        expected = await alone(loaded, second)
        await loaded.erase_slot(0)
        await ask(loaded, first, user_starts=(40, 200)).one()
        again = await ask(loaded, second, user_starts=(40, 200)).one()
        assert again.tokens == expected
        assert 199 <= again.timings.cache_n <= 200


def test_earlier_messages_get_checkpoints_at_a_minimum_distance() -> None:
    rules = CheckpointRules(max_number=4, min_step=100, n_batch=512, n_ubatch=64)
    state = np.zeros(1, np.uint8)
    there = [Checkpoint(1, 300, 0, 299, state)]
    turns = (50, 350, 500, 520)
    assert rules.boundaries(1000, turns, []) == (932, 996, *turns)
    assert rules.boundaries(1000, turns, there) == (932, 996, 500, 520)
    assert rules.wanted(1000, 50, 10, turns, [])
    assert [rules.wanted(1000, at, 10, turns, there) for at in (50, 350, 500, 520, 600, 930)] == [
        False, False, True, True, False, True,
    ]  # fmt: skip
    assert not CheckpointRules(0, 100, 512, 64).wanted(1000, 500, 10, turns, [])


@given(st.lists(st.integers(0, 3), max_size=30))
def test_user_messages_are_found_by_their_tokens(tokens: list[int]) -> None:
    delimiters = [MessageDelimiter(False, (1, 2, 3)), MessageDelimiter(True, (1, 2))]
    found = user_starts(tokens, delimiters)
    assert list(found) == [
        at for at in range(len(tokens)) if tokens[at : at + 2] == [1, 2] and tokens[at : at + 3] != [1, 2, 3]
    ]


@pytest.mark.parametrize("name", sorted(chat_templates.ALL))
def test_the_beginning_of_user_messages_is_derived_from_the_template(name: str) -> None:
    template = ChatTemplate(chat_templates.ALL[name], "<s>", "</s>")
    users = [found.text for found in detect_delimiters(template, probe(template)) if found.role == "user"]
    messages = [
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": "Answer"},
        {"role": "user", "content": "Second"},
    ]
    text = template.render(messages, add_generation_prompt=True)
    (user,) = users
    assert [part.strip().partition("<")[0].strip() for part in text.split(user)[1:]] == ["First", "Second"]


def test_a_chat_with_an_edited_last_question_reuses_the_rest(programs: Programs) -> None:
    program = programs.worker(
        "--parallel", "1", "--ctx-size", "2048", "--threads", "1", "--ubatch-size", "32", model="tiny-gemma3.gguf"
    )
    history = [
        {"role": "user", "content": "What is the answer to this question? " * 6},
        {"role": "assistant", "content": "Write a story about the sea. " * 6},
    ]

    def cached(question: str) -> int:
        body = {"messages": [*history, {"role": "user", "content": question}], "max_tokens": 4}
        answer = program.client.post("/v1/chat/completions", json=body).raise_for_status().json()
        return int(answer["timings"]["cache_n"])

    assert cached("Once upon a time " * 12) == 0
    prompt = program.client.post("/apply-template", json={"messages": history}).json()["prompt"]
    counted = program.client.post("/tokenize", json={"content": prompt, "add_special": True}).json()["tokens"]
    assert cached("The quick brown fox jumps " * 12) >= len(counted) - 12
