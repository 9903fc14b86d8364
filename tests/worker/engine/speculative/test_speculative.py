"""Speculative decoding: every answer equals the one without drafts, for all drafters, right or wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drafting import CACHE, FOX, OTHER, SAME, SIMPLE, answers, comparable, drafting, engine_of, rounded
from engine_tools import GREEDY, Request, ask, asleep
from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.worker.engine.llama.errors import LoadError
from llama_corral.worker.engine.messages import Grammar, Piece, Sampling
from llama_corral.worker.engine.runner import LoadedModel

ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
MAP_K = {"spec_type": ("ngram-map-k",), "spec_ngram_map_k_size_n": 2, "spec_ngram_map_k_size_m": 8}
MAP_K4V = {"spec_type": ("ngram-map-k4v",), "spec_ngram_map_k4v_size_n": 2, "spec_ngram_map_k4v_size_m": 8}
MOD = {"spec_type": ("ngram-mod",), "spec_ngram_mod_n_match": 2, "spec_ngram_mod_n_min": 1, "spec_ngram_mod_n_max": 9}
EVERY = {"simple": SIMPLE, "map-k": MAP_K, "map-k4v": MAP_K4V, "mod": MOD, "cache": CACHE, "same": SAME, "other": OTHER}
every = pytest.mark.parametrize("drafts", EVERY.values(), ids=EVERY)
some = pytest.mark.parametrize("drafts", [SIMPLE, SAME, OTHER], ids=["simple", "same", "other"])


async def assert_same(models: Path, drafts: dict[str, Any], *requests: dict[str, Any], **settings: Any) -> None:
    """Check that sequential requests have the same answers with drafts as without, and that drafts are used."""

    async with drafting(models, {}, **settings) as (_, loaded):
        expected = [await answers(loaded, request) for request in requests]
    async with drafting(models, drafts, **settings) as (engine, loaded):
        assert [await answers(loaded, request) for request in requests] == expected
        totals = engine.snapshot.totals
        assert totals.draft_checks > 0
        assert totals.drafted >= totals.draft_accepted == sum(totals.accepted_at)


SAMPLINGS = [
    {"sampling": GREEDY},
    {"sampling": Sampling(seed=7)},
    {"sampling": Sampling(seed=7, temperature=0.3, repeat_penalty=1.2, dry_multiplier=0.5)},
    {"sampling": Sampling(seed=3, mirostat=2)},
]


@every
@pytest.mark.parametrize("model", ["tiny-llama.gguf", "tiny-gemma3.gguf", "tiny-mamba.gguf"])
async def test_answers_equal_those_without_drafts(models: Path, drafts: dict[str, Any], model: str) -> None:
    await assert_same(models, drafts, *({"n_predict": 90, **sampling} for sampling in SAMPLINGS), model=model)


@some
async def test_probabilities_and_limits(models: Path, drafts: dict[str, Any]) -> None:
    requests: list[dict[str, Any]] = [{"n_predict": n} for n in (1, 2, 3, 41)]
    requests += [
        {"n_predict": 30, "sampling": Sampling(temperature=0.0, n_probs=3)},
        {"n_predict": 30, "sampling": Sampling(seed=5, n_probs=2, post_sampling_probs=True)},
        {"n_predict": 40, "t_max_predict_ms": 60000.0, "n_indent": 1},
        {"n_predict": 0},
    ]
    await assert_same(models, drafts, *requests)


@some
async def test_stop_strings_in_the_middle_of_a_draft(models: Path, drafts: dict[str, Any]) -> None:
    async with drafting(models, {}) as (_, loaded):
        whole = (await ask(loaded, FOX, n_predict=60).one()).text
    words = [whole[at : at + n] for at, n in ((9, 3), (25, 4), (40, 2), (len(whole) // 2, 7))]
    await assert_same(models, drafts, *({"n_predict": 60, "stop": (word,)} for word in words), {"n_predict": 60})


@some
async def test_grammars(models: Path, drafts: dict[str, Any]) -> None:
    grammars = ['root ::= ("a little fox, "){4}', "root ::= [a-z ]+ [.]", 'root ::= ("yes" | "no" | "fox ")+']
    requests = [
        {"n_predict": 40, "sampling": Sampling(seed=2, temperature=t, grammar=Grammar(text))}
        for text in grammars
        for t in (0.0, 1.0)
    ]
    await assert_same(models, drafts, *requests)


@pytest.mark.parametrize("drafts", [CACHE, SAME, OTHER], ids=["cache", "same", "other"])
@pytest.mark.parametrize("model", ["tiny-llama.gguf", "tiny-mamba.gguf"])
@pytest.mark.parametrize("unified", [True, False])
async def test_choices(models: Path, drafts: dict[str, Any], model: str, unified: bool) -> None:
    requests = [{"n": 2, "n_predict": 40, "sampling": Sampling(seed=11)}, {"n": 2, "n_predict": 12}]
    await assert_same(models, drafts, *requests, model=model, kv_unified=unified)


@some
async def test_context_shift(models: Path, drafts: dict[str, Any]) -> None:
    endless = Sampling(temperature=0.0, ignore_eos=True)
    requests = [{"n_predict": 400, "sampling": endless}, {"n_predict": 300, "sampling": endless, "n_keep": 5}]
    await assert_same(models, drafts, *requests, ctx_size=256, parallel=1, context_shift=True)


@some
async def test_a_full_context(models: Path, drafts: dict[str, Any]) -> None:
    await assert_same(models, drafts, {"n_predict": -1, "sampling": Sampling(temperature=0.0, ignore_eos=True)},
                ctx_size=256, parallel=1)  # fmt: skip


@every
async def test_concurrent_streams(models: Path, drafts: dict[str, Any]) -> None:
    """Batches differ from single requests, so results could differ by rounding; with these models they do not."""
    prompts = [FOX, "Hello, world! Hello, world! Hello,", "The quick brown fox jumps over the lazy dog. " * 20]
    requests = [{"prompt": p, "n_predict": 60, "sampling": Sampling(seed=i)} for i, p in enumerate(prompts * 3)]

    settings = {"parallel": 4, "ctx_size": 4096, "batch_size": 64, "ubatch_size": 32}
    async with drafting(models, {}, **settings) as (_, loaded):
        expected = [await answers(loaded, request) for request in requests]
    async with drafting(models, drafts, **settings) as (engine, loaded):
        assert await answers(loaded, *requests) == [answer for part in expected for answer in part]
        assert engine.snapshot.totals.draft_checks > 0


@pytest.mark.parametrize("model", ["tiny-llama.gguf", "tiny-mamba.gguf"])
async def test_a_prompt_is_reused_after_rejected_drafts(models: Path, model: str) -> None:
    """After rejected drafts a slot's memory matches its tokens: a reused prompt gives the same answer as a new one."""

    async def conversation(loaded: LoadedModel, cache_prompt: bool) -> list[tuple[int, ...]]:
        tokens, turns = loaded.vocab.tokenize(FOX, True, True), list[tuple[int, ...]]()
        for _ in range(4):
            result = await ask(loaded, tokens, n_predict=25, cache_prompt=cache_prompt).one()
            turns.append(result.tokens)
            tokens = [*tokens, *result.tokens, *loaded.vocab.tokenize(" And then")]
        return turns

    async with drafting(models, {}, model=model) as (_, loaded):
        expected = await conversation(loaded, False)
    for drafts in (SIMPLE, SAME, OTHER):
        async with drafting(models, drafts, model=model) as (_, loaded):
            assert await conversation(loaded, True) == expected


@pytest.mark.parametrize("drafts", [SIMPLE, SAME], ids=["simple", "same"])
async def test_cancelled_streams_do_not_change_later_answers(models: Path, drafts: dict[str, Any]) -> None:
    endless = {"n_predict": -1, "stream": True, "sampling": Sampling(temperature=0.0, ignore_eos=True)}
    async with drafting(models, {}) as (_, loaded):
        expected = await answers(loaded, {"n_predict": 50})
    async with drafting(models, drafts, ctx_size=8192) as (_, loaded):
        for n in (1, 5, 20):
            request = ask(loaded, FOX, **endless)
            await request.until(lambda events, n=n: sum(isinstance(e, Piece) for e in events) >= n)  # type: ignore[misc]
            request.ticket.cancel()
            assert await answers(loaded, {"n_predict": 50}) == expected


async def test_a_stream_sends_every_token_with_its_probabilities(models: Path) -> None:
    async def pieces(loaded: LoadedModel) -> tuple[list[tuple[object, ...]], Request]:
        request = ask(
            loaded, FOX, n_predict=40, stream=True, timings_per_token=True, sampling=Sampling(seed=1, n_probs=1)
        )
        await request.one()
        return [
            (p.text, p.tokens, p.n_decoded, rounded(p.probs)) for p in request.events if isinstance(p, Piece)
        ], request

    async with drafting(models, {}) as (_, loaded):
        expected, _ = await pieces(loaded)
    async with drafting(models, SAME) as (_, loaded):
        shown, request = await pieces(loaded)
        assert shown == expected
        timings = [p.timings for p in request.events if isinstance(p, Piece) and p.timings]
        assert [t.predicted_n for t in timings] == sorted(t.predicted_n for t in timings)
        assert 0 < timings[-1].draft_n_accepted <= timings[-1].draft_n


async def test_a_good_draft_saves_steps(models: Path) -> None:
    async with drafting(models, SAME) as (engine, loaded):
        result = await ask(loaded, FOX, n_predict=60).one()
        assert result.timings.draft_n == result.timings.draft_n_accepted
        assert engine.snapshot.totals.decodes <= 1 + 60 / 5
        assert engine.snapshot.totals.accepted_at[0] == engine.snapshot.totals.draft_checks


async def test_sleep_frees_the_draft_and_waking_loads_it_again(models: Path) -> None:
    reports: list[WorkerReport] = []
    engine = engine_of(models, SAME, reports, sleep_idle_seconds=1)
    await engine.load()
    stages = [report.payload for report in reports if report.payload]
    assert all(payload["stages"] == ["text_model", "spec_model"] for payload in stages)
    assert {payload["current"] for payload in stages} == {"text_model", "spec_model"}
    async with engine.use() as loaded:
        before = await answers(loaded, {"n_predict": 30})
    n_checks = engine.snapshot.totals.draft_checks
    await asleep(engine)
    async with engine.use() as loaded:
        assert await answers(loaded, {"n_predict": 30}) == before
        assert engine.snapshot.totals.draft_checks == 2 * n_checks > 0
    await engine.close()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"spec_type": ("draft-simple",)}, "needs a draft model"),
        ({"model_draft": "truncated.gguf"}, "failed to load model"),
        ({"spec_type": ("ngram-cache",), "lookup_cache_static": "not-a-model.gguf"}, "failed to read lookup cache"),
        ({"spec_synth_len": 2.0}, "needs speculative decoding"),
        ({**SAME, "spec_synth_len": 9.0}, "is not between 1 and 6"),
        ({**SAME, "spec_synth_rates": (0.5,)}, "5 values are needed, 1 are given"),
        ({**SAME, "spec_synth_rates": (0.5, 0.6, 0.1, 0.1, 0.1)}, "not above the one before"),
        ({**SAME, "spec_synth_rates": (0.5,), "spec_synth_len": 2.0}, "exclude each other"),
        ({"model_draft": "tiny-bert.gguf", "spec_synth_len": 2.0}, "no drafter could be set up"),
    ],
)
async def test_invalid_draft_options_are_refused(models: Path, settings: dict[str, Any], text: str) -> None:
    if "lookup_cache_static" in settings:
        settings = settings | {"lookup_cache_static": str(models / settings["lookup_cache_static"])}

    with pytest.raises(LoadError, match=text):
        async with drafting(models, settings):
            pass


async def test_a_draft_model_with_other_tokens_is_ignored(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with drafting(models, {"model_draft": "tiny-llama-fim.gguf"}) as (engine, loaded):
        assert (await ask(loaded, FOX).one()).n_decoded == 16
        assert engine.snapshot.totals.draft_checks == 0
        assert not (await loaded.slots())[0].speculative
    assert "cannot draft for" in caplog.text


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
async def test_simulated_acceptance(models: Path, chance: float) -> None:
    requests = {"n_predict": 60, "sampling": Sampling(seed=9, temperature=0.2, ignore_eos=True)}
    async with drafting(models, {}) as (_, loaded):
        plain = await ask(loaded, FOX, **requests).one()
    rates = tuple(chance ** (i + 1) for i in range(4))
    async with drafting(models, {**OTHER, "spec_synth_rates": rates}) as (_, loaded):
        first, second = [await ask(loaded, FOX, cache_prompt=False, **requests).one() for _ in range(2)]
        assert first.tokens == second.tokens
        assert first.timings.draft_n_accepted == second.timings.draft_n_accepted
        assert first.timings.draft_n > 0
        if chance == 0.0:
            assert first.timings.draft_n_accepted == 0
            assert first.tokens == plain.tokens
        if chance == 1.0:
            assert first.timings.draft_n_accepted == first.timings.draft_n


@some
async def test_drafts_are_omitted_when_the_kv_cache_is_full(models: Path, drafts: dict[str, Any]) -> None:
    """Drafts are omitted before anything that a slot has cached is evicted."""

    async def told(loaded: LoadedModel) -> list[tuple[object, ...]]:
        requests = [{"id_slot": 0, "n_predict": 150}, {"id_slot": 1, "n_predict": 220}, {"id_slot": 0, "n_predict": 40}]
        return [comparable(await ask(loaded, FOX, sampling=ENDLESS, **fields).one()) for fields in requests]

    settings = {"ctx_size": 320, "kv_unified": True, "cache_ram": 0, "cache_idle_slots": False}
    async with drafting(models, {}, **settings) as (_, loaded):
        expected = await told(loaded)
    async with drafting(models, drafts, **settings) as (_, loaded):
        assert await told(loaded) == expected
