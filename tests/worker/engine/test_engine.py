"""The engine on real tiny models: generation, stop conditions and reuse of prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_tools import ask, running
from llama_corral.common.base.errors import ContextExceeded
from llama_corral.worker.engine.messages import Begun, Grammar, Piece, Sampling

WARM = Sampling(seed=7, temperature=1.2, top_k=0)


async def test_streamed_text_is_the_whole_text(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        request = ask(loaded, n_predict=40, stream=True, sampling=WARM)
        result = await request.one()
        assert isinstance(request.events[0], Begun)
        assert request.events[-1] is result
        assert request.text == result.text
        assert result.text == loaded.vocab.join(result.tokens, special=False).decode("utf-8", "replace")
        assert (result.stop_type, result.n_decoded, len(result.tokens)) == ("limit", 40, 40)
        pieces = [event for event in request.events if isinstance(event, Piece)]
        assert [token for piece in pieces for token in piece.tokens] == list(result.tokens)


async def test_same_seed_same_tokens(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        first, again, other = [
            (await ask(loaded, sampling=Sampling(seed=seed, temperature=1.5), cache_prompt=False).one()).tokens
            for seed in (1, 1, 2)
        ]
        assert first == again != other


async def test_a_stream_gives_the_same_text_with_and_without_others(llama: Path) -> None:
    async with running(llama, parallel=4) as engine, engine.use() as loaded:
        prompts = ["Once upon a time", "What is the answer", "def main():", "I believe that"]
        alone = [(await ask(loaded, prompt, cache_prompt=False).one()).tokens for prompt in prompts]
        requests = [ask(loaded, prompt, cache_prompt=False) for prompt in prompts]
        assert [(await request.one()).tokens for request in requests] == alone
        assert engine.metrics().totals.busy_slots > engine.metrics().totals.decodes, "they shared batches"


async def test_more_requests_than_slots_are_all_served_in_order(llama: Path) -> None:
    async with running(llama, parallel=2) as engine, engine.use() as loaded:
        order: list[int] = []
        requests = [ask(loaded, f"count {i}", n_predict=4) for i in range(10)]
        for i, request in enumerate(requests):
            await request.one()
            order.append(i)
        assert order == list(range(10))
        assert engine.snapshot.totals.deferred == engine.snapshot.totals.processing == 0


async def test_unified_and_split_kv_give_the_same_text(llama: Path) -> None:
    async def answers(**settings: object) -> tuple[int, list[tuple[int, ...]]]:
        async with running(llama, **settings) as engine, engine.use() as loaded:
            requests = [ask(loaded, f"prompt {i}", sampling=WARM) for i in range(3)]
            return loaded.info.n_ctx, [(await request.one()).tokens for request in requests]

    n_unified, unified = await answers()
    n_split, split = await answers(parallel=2)
    n_both, both = await answers(parallel=2, kv_unified=True)
    assert (n_unified, n_split, n_both) == (1024, 512, 1024)
    assert unified == split == both


async def test_a_stop_string_split_over_tokens_ends_the_answer(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        free = await ask(loaded, n_predict=32, stream=True).one()
        pieces = [loaded.vocab.piece(token).decode("utf-8", "replace") for token in free.tokens]
        stop = pieces[9][-1:] + pieces[10] + pieces[11][:1]
        at = free.text.index(stop)
        for stream in (True, False):
            request = ask(loaded, n_predict=32, stop=("never", stop), stream=stream)
            result = await request.one()
            assert (result.stop_type, result.stopping_word, result.text) == ("word", stop, free.text[:at])
            assert not stream or request.text == free.text[:at]


async def test_n_predict_zero_still_gives_one_token(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        assert (await ask(loaded, n_predict=0).one()).n_decoded == 1
        assert (await ask(loaded, n_predict=1).one()).timings.predicted_n == 1


async def test_the_servers_n_predict_applies_if_the_request_has_none(llama: Path) -> None:
    async with running(llama, n_predict=5) as engine, engine.use() as loaded:
        assert (await ask(loaded, n_predict=-1).one()).n_decoded == 5
        assert (await ask(loaded, n_predict=7).one()).n_decoded == 7


async def test_a_full_context_ends_the_answer(llama: Path) -> None:
    async with running(llama, ctx_size=512, parallel=2) as engine, engine.use() as loaded:
        assert loaded.info.n_ctx == 256
        prompt = loaded.vocab.tokenize("Once upon a time", True)[:8]
        result = await ask(loaded, prompt, n_predict=-1, sampling=Sampling(ignore_eos=True)).one()
        assert (result.n_prompt, result.n_decoded, result.stop_type, result.truncated) == (8, 248, "limit", True)
        assert (await ask(loaded, [5] * 255).one()).n_decoded == 1
        with pytest.raises(ContextExceeded) as caught:
            ask(loaded, [5] * 256)
        assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (256, 256)


async def test_an_end_of_generation_token_ends_the_answer(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        eos = loaded.vocab.eos
        result = await ask(loaded, sampling=Sampling(logit_bias=((eos, 1000.0),)), stop=("x",)).one()
        assert (result.stop_type, result.tokens, result.text) == ("eos", (eos,), "")
        result = await ask(loaded, sampling=Sampling(logit_bias=((eos, 1000.0),), ignore_eos=True)).one()
        assert (result.stop_type, eos in result.tokens) == ("limit", False)
        shown = await ask(
            loaded, sampling=Sampling(logit_bias=((eos, 1000.0),)), preserved_tokens=frozenset({eos})
        ).one()
        assert shown.text == "</s>"


async def test_a_character_over_several_tokens_is_shown_whole(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        byte = {loaded.vocab.piece(token): token for token in range(loaded.vocab.n_vocab)}
        first = byte["€".encode()[:1]]
        request = ask(loaded, n_predict=6, stream=True, sampling=Sampling(logit_bias=((first, 1000.0),)))
        result = await request.one()
        assert result.text == "\N{REPLACEMENT CHARACTER}" * 5
        assert result.broken == "\N{REPLACEMENT CHARACTER}", "of the last one, which could still be completed"
        assert request.text == result.text
        grammar = 'root ::= "€" "a"'
        result = await ask(
            loaded, n_predict=8, sampling=Sampling(grammar=Grammar(grammar), temperature=2.0, seed=3)
        ).one()
        assert (result.text, result.stop_type) == ("€a", "eos")


async def test_at_least_one_token_of_a_known_prompt_is_computed(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        prompt = [1, *range(270, 346)]
        first, again = [(await ask(loaded, prompt, n_predict=4).one()).timings for _ in range(2)]
        assert (first.cache_n, first.prompt_n) == (0, 77)
        assert (again.cache_n, again.prompt_n) == (76, 1)
        fresh = (await ask(loaded, prompt, n_predict=4, cache_prompt=False).one()).timings
        assert (fresh.cache_n, fresh.prompt_n) == (0, 77)
        assert engine.metrics().totals.prompt_tokens_cached == 76


async def test_a_reused_prefix_changes_no_answer(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        prompt, longer = [1, *range(270, 300)], [1, *range(270, 290), *range(400, 420)]
        await ask(loaded, prompt).one()
        reused = await ask(loaded, longer).one()
        assert reused.timings.cache_n == 21
        assert reused.tokens == (await ask(loaded, longer, cache_prompt=False).one()).tokens


async def test_matching_runs_are_shifted_to_their_new_place(llama: Path) -> None:
    async with running(llama, parallel=1) as engine, engine.use() as loaded:
        head, gap, tail = [1, *range(270, 290)], list(range(300, 310)), list(range(400, 440))
        await ask(loaded, head + gap + tail, n_predict=1).one()
        moved = await ask(loaded, head + tail, n_predict=8, n_cache_reuse=8).one()
        assert moved.timings.cache_n == len(head + tail) - 1
        assert moved.n_decoded == 8


async def test_a_prompt_is_computed_again_after_the_window_moved(models: Path) -> None:
    async with running(models / "tiny-gemma3.gguf", parallel=1) as engine, engine.use() as loaded:
        prompt = [2, *range(270, 300)]
        await ask(loaded, prompt, n_predict=100, sampling=Sampling(ignore_eos=True)).one()
        other = [*prompt[:20], *range(310, 330)]
        again = await ask(loaded, other).one()
        assert again.timings.cache_n == 0, "the window no longer reaches back to the common prefix"
        assert again.tokens == (await ask(loaded, other, cache_prompt=False).one()).tokens
