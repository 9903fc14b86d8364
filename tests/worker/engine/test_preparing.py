"""What a request's samplers need is made before it is submitted, by other threads, and belongs to the request."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_tools import ask, asleep, running
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.engine import runner
from llama_corral.worker.engine.messages import Grammar, GrammarMatcher, Sampling
from llama_corral.worker.engine.sampling import dry, guidance, llama_matcher, preparing

MATCHERS: list[GrammarMatcher] = ["llguidance", "llama.cpp"]


def constrained(text: str, matcher: GrammarMatcher = "llguidance") -> Sampling:
    return Sampling(grammar=Grammar(text, matcher=matcher))


@pytest.mark.parametrize("matcher", MATCHERS)
async def test_the_engine_thread_compiles_no_grammar_of_a_prepared_request(
    llama: Path, matcher: GrammarMatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance, "_KEPT", 1)
    async with running(llama) as engine, engine.use() as loaded:
        prepared = await loaded.prepare_for(constrained('root ::= "on" "ce"', matcher))
        await loaded.prepare_for(constrained('root ::= "never"', matcher))  # of another client
        monkeypatch.setattr(guidance, "parsed", None)
        monkeypatch.setattr(llama_matcher, "parsed", None)
        assert [(await ask(loaded, sampling=prepared).one()).text for _ in range(2)] == ["once", "once"]


async def test_the_engine_thread_makes_no_dry_sampler_of_a_prepared_request(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry, "_MAX_KEPT", 1)
    async with running(llama) as engine, engine.use() as loaded:
        prepared = await loaded.prepare_for(Sampling(dry_multiplier=1.0, dry_allowed_length=3))
        await loaded.prepare_for(Sampling(dry_multiplier=1.0, dry_allowed_length=4))
        monkeypatch.setattr(dry, "_made", None)
        assert (await ask(loaded, sampling=prepared).one()).n_decoded == 16


@pytest.mark.parametrize("matcher", MATCHERS)
async def test_an_invalid_grammar_is_refused_before_it_reaches_the_engine(llama: Path, matcher: GrammarMatcher) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        with pytest.raises(InvalidRequest, match=r"failed to parse grammar: .*left recursion"):
            await loaded.prepare_for(constrained('root ::= root "x"', matcher))


@pytest.mark.parametrize(
    ("sampling", "make"),
    [
        (constrained('root ::= "waiting"'), "guidance.parsed"),
        (constrained('root ::= "waiting"', "llama.cpp"), "llama_matcher.parsed"),
        (Sampling(dry_multiplier=1.0, dry_allowed_length=5), "dry._made"),
    ],
    ids=["llguidance", "llama.cpp", "dry"],
)
async def test_work_that_waits_for_that_of_others_ends_with_its_request(
    llama: Path, sampling: Sampling, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    release, started = threading.Event(), threading.Event()
    wait = lambda: (started.set(), release.wait())  # noqa: E731
    async with running(llama) as engine, engine.use() as loaded:
        others = preparing.for_dry(wait) if sampling.dry_multiplier else preparing.for_grammar(wait, 1)
        try:
            await asyncio.to_thread(started.wait)
            monkeypatch.setattr(f"llama_corral.worker.engine.sampling.{make}", lambda *given: made.append(given))
            waiting = asyncio.ensure_future(loaded.prepare_for(sampling))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        finally:
            release.set()
        await asyncio.wrap_future(others)
        after = preparing.for_dry(int) if sampling.dry_multiplier else preparing.for_grammar(int, 1)
        await asyncio.wrap_future(after)  # the thread takes its work in order
        assert not made
        monkeypatch.undo()


async def test_a_grammar_that_is_kept_does_not_wait_for_others(llama: Path) -> None:
    release = threading.Event()
    async with running(llama) as engine, engine.use() as loaded:
        await loaded.prepare_for(constrained('root ::= "kept"'))
        others = preparing.for_grammar(release.wait, 1)
        try:
            assert (await loaded.prepare_for(constrained('root ::= "kept"'))).grammar is not None
        finally:
            release.set()
        await asyncio.wrap_future(others)


def is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "LARGE_VOCAB", 1)
    monkeypatch.setattr(runner, "IDLE_BEFORE_INDEX", 0.0)


async def test_a_large_vocabulary_is_indexed_when_the_model_is_idle(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_large(monkeypatch)
    async with running(llama) as engine:
        async with engine.use() as loaded:
            await ask(loaded, n_predict=50).one()
            assert loaded.should_be_indexed, "not while it is used"
        while loaded.should_be_indexed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        monkeypatch.setattr(guidance, "_Index", None)
        async with engine.use():
            prepared = await loaded.prepare_for(constrained('root ::= "indexed"'))
            assert (await ask(loaded, sampling=prepared).one()).text == "indexed"


async def test_it_is_indexed_again_after_sleep(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_large(monkeypatch)
    async with running(llama, sleep_idle_seconds=1) as engine:
        engine.set_idle_timeout(0.0)
        await asleep(engine)
        engine.set_idle_timeout(-1)
        async with engine.use() as loaded:
            assert loaded.should_be_indexed
        while loaded.should_be_indexed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("settings", "n_tokens"), [({"grammar_matcher": "llama.cpp"}, 1), ({"embeddings": True}, 1), ({}, 64_000)]
)
async def test_a_vocabulary_that_needs_no_index_has_none(
    llama: Path, settings: dict[str, Any], n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_large(monkeypatch)
    monkeypatch.setattr(guidance, "LARGE_VOCAB", n_tokens)
    async with running(llama, **settings) as engine, engine.use() as loaded:
        assert not loaded.should_be_indexed
