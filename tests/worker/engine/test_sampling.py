"""Sampling on a real tiny model, and the reported probabilities."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from engine_tools import GREEDY, ask, running
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.engine.batching import choice
from llama_corral.worker.engine.llama.vocab import Vocab
from llama_corral.worker.engine.messages import Grammar, Sampling
from llama_corral.worker.engine.sampling import dry
from llama_corral.worker.engine.sampling.probabilities import LOWEST, before_sampling
from msgspec.structs import replace


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, seed=3),
        Sampling(top_k=1, temperature=2.0, seed=4),
        Sampling(min_p=1.0, temperature=2.0, seed=5),
        Sampling(samplers=("top_p", "temperature"), top_p=0.0, temperature=2.0, seed=6),
        Sampling(samplers=("typ_p", "top_k"), top_k=1, seed=7),
    ],
)
async def test_greedy_settings_choose_the_likeliest_token(llama: Path, sampling: Sampling) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        greedy = await ask(loaded, sampling=Sampling(temperature=0.0, n_probs=1)).one()
        assert [probs.top[0].id for probs in greedy.probs] == list(greedy.tokens)
        if sampling.samplers[0] != "typ_p":
            assert (await ask(loaded, sampling=sampling).one()).tokens == greedy.tokens
        else:
            assert (await ask(loaded, sampling=sampling).one()).n_decoded == 16


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1, mirostat=1),
        Sampling(seed=1, mirostat=2),
        Sampling(seed=1, samplers=("top_k", "adaptive_p"), adaptive_target=0.4),
        Sampling(seed=1, dry_multiplier=0.8, dry_allowed_length=1),
        Sampling(seed=1, xtc_probability=0.9, xtc_threshold=0.01),
        Sampling(seed=1, dynatemp_range=0.6, top_n_sigma=1.0),
        Sampling(seed=1, samplers=("infill",)),
        Sampling(seed=1, samplers=()),
    ],
)
async def test_every_sampler_is_reproducible(llama: Path, sampling: Sampling) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        answers = [(await ask(loaded, sampling=sampling, cache_prompt=False).one()).tokens for _ in range(2)]
        assert answers[0] == answers[1]
        assert answers[0]


async def test_penalties_include_the_prompt(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        sampling = Sampling(temperature=0.0, presence_penalty=1000.0, repeat_last_n=200)
        result = await ask(loaded, n_predict=40, sampling=sampling).one()
        prompt = loaded.vocab.tokenize("Once upon a time", True, True)
        assert len({*prompt, *result.tokens}) == len(set(prompt)) + 40


async def test_logit_biases_are_applied(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        free = await ask(loaded, sampling=GREEDY).one()
        never = tuple((token, -math.inf) for token in set(free.tokens))
        assert not {*free.tokens} & {
            *(await ask(loaded, sampling=Sampling(temperature=0.0, logit_bias=never)).one()).tokens
        }
        always = Sampling(logit_bias=((300, 1000.0), (10**9, 1.0)))
        assert set((await ask(loaded, sampling=always).one()).tokens) == {300}


async def test_a_grammar_is_obeyed(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        for seed in range(5):
            sampling = Sampling(
                seed=seed, temperature=1.5, grammar=Grammar('root ::= ("yes" | "no" | "1" [0-9]{3}) "!"')
            )
            result = await ask(loaded, sampling=sampling, n_predict=32).one()
            assert result.stop_type == "eos"
            assert result.text in ("yes!", "no!") or (result.text[0] == "1" and len(result.text) == 5)


async def test_probabilities_after_sampling(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        plain, asked = [
            await ask(
                loaded,
                sampling=Sampling(seed=8, top_k=3, min_p=0.0, top_p=1.0, n_probs=n, post_sampling_probs=True),
            ).one()
            for n in (0, 5)
        ]
        assert plain.tokens == asked.tokens, "asking changes nothing"
        assert len(asked.probs) == 16
        for probs in asked.probs:
            ps = [top.p for top in probs.top]
            assert len(ps) == 3
            assert ps == sorted(ps, reverse=True)
            assert sum(ps) == pytest.approx(1, abs=1e-5)
            assert probs.chosen in probs.top


async def test_probabilities_before_sampling(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        result = await ask(loaded, sampling=Sampling(seed=8, n_probs=512), stop=()).one()
        for token, probs in zip(result.tokens, result.probs, strict=True):
            assert probs.chosen.id == token
            assert sum(math.exp(top.p) for top in probs.top) == pytest.approx(1, abs=1e-4)
            assert probs.chosen.piece == loaded.vocab.plain_piece(token)


async def test_a_stop_strings_probabilities_are_removed(llama: Path) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        free = await ask(loaded, sampling=GREEDY).one()
        stop = loaded.vocab.piece(free.tokens[5]).decode()
        n_stop = len(loaded.vocab.tokenize(stop))
        cut = await ask(loaded, sampling=Sampling(temperature=0.0, n_probs=2), stop=(stop,)).one()
        assert len(cut.probs) == len(cut.tokens) - n_stop
        streamed = ask(loaded, sampling=Sampling(temperature=0.0, n_probs=2), stream=True)
        await streamed.one()
        assert sum(len(event.probs) for event in streamed.events if hasattr(event, "probs")) == 16


class Spelled(Vocab):
    """A vocabulary whose pieces are numbers, without a model."""

    def __init__(self) -> None:
        pass

    def piece(self, token: int) -> bytes:
        return str(token).encode()


logits = arrays.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32) | st.just(float("-inf")), unique=False
).filter(lambda values: bool(np.isfinite(values).any()))


@given(logits, st.integers(0, 50), st.data())
def test_logarithms_of_probabilities(values: np.ndarray, n: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(values) - 1))
    probs = before_sampling(values, token, n, Spelled(), special=True)
    exact = values.astype(np.float64) - np.logaddexp.reduce(values.astype(np.float64))
    assert probs.chosen.p == pytest.approx(max(exact[token], LOWEST), abs=1e-3)
    assert [top.p for top in probs.top] == pytest.approx(np.maximum(np.sort(exact)[::-1][:n], LOWEST), abs=1e-3)
    assert len({top.id for top in probs.top}) == min(n, len(values))


async def test_an_answer_that_is_not_streamed_keeps_a_limited_number_of_probabilities(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "MAX_KEPT_PROBS", 40)
    async with running(llama) as engine, engine.use() as loaded:
        with pytest.raises(InvalidRequest, match="more than 40 probabilities"):
            await ask(loaded, sampling=Sampling(seed=8, n_probs=9), stop=()).one()
        streamed = await ask(loaded, sampling=Sampling(seed=8, n_probs=9), stop=(), stream=True).one()
        assert streamed.n_decoded == 16


async def test_dry_samplers_are_made_before_the_engine_needs_them(llama: Path) -> None:
    """The copies have the same effect as samplers that are made for one answer."""
    sampling = Sampling(
        seed=3, temperature=0.0, dry_multiplier=5.0, dry_allowed_length=1, dry_sequence_breakers=("q", "e")
    )
    async with running(llama) as engine, engine.use() as loaded:
        made = await ask(loaded, sampling=sampling, n_predict=400).one()
        without = await ask(loaded, sampling=replace(sampling, dry_multiplier=0.0), n_predict=400).one()
        assert made.tokens != without.tokens
        sampling = await loaded.prepare_for(sampling)
        copies = [await ask(loaded, sampling=sampling, n_predict=400).one() for _ in range(2)]
        assert [copied.tokens for copied in copies] == [made.tokens] * 2


@pytest.mark.parametrize("n", [1, 20])
async def test_only_some_dry_samplers_are_kept(llama: Path, n: int) -> None:
    async with running(llama) as engine, engine.use() as loaded:
        for length in range(n):
            await loaded.prepare_for(Sampling(dry_multiplier=1.0, dry_allowed_length=length))
        assert len(dry._kept[loaded.vocab]) == min(n, dry._MAX_KEPT)
