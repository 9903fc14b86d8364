"""Context shift: the range that a full slot removes, and that generation continues."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_tools import GREEDY, ask, running
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ContextExceeded, ServerFault
from llama_corral.worker.engine.cache.context_shift import n_tokens_kept, shift_range
from llama_corral.worker.engine.messages import Sampling

ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
SHIFTING = {"ctx_size": 256, "parallel": 1, "context_shift": True}


@given(n_ctx=st.integers(8, 4096), n_keep=st.integers(0, 5000), n_discard=st.integers(0, 5000), data=st.data())
def test_a_shift_frees_positions_and_keeps_the_last_one(
    n_ctx: int, n_keep: int, n_discard: int, data: st.DataObject
) -> None:
    n_tokens = data.draw(st.integers(n_ctx - 1, n_ctx))
    begin, end = shift_range(n_tokens, n_ctx, n_keep, n_discard)
    assert 0 <= begin <= n_keep
    assert begin < end < n_tokens


@pytest.mark.parametrize(("n_keep", "adds_bos", "kept"), [(0, True, 1), (5, True, 6), (-1, True, 31), (-1, False, 30)])
def test_n_keep_counts_the_bos_token(n_keep: int, adds_bos: bool, kept: int) -> None:
    assert n_tokens_kept(n_keep, 30, adds_bos) == kept


@pytest.mark.parametrize(
    "fields", [{}, {"n_keep": 4}, {"n_keep": -1}, {"n_discard": 3}, {"n_keep": 8, "n_discard": 500}]
)
async def test_generation_continues_after_the_context_is_full(models: Path, fields: dict[str, int]) -> None:
    async with running(models / "tiny-llama.gguf", **SHIFTING) as engine, engine.use() as loaded:
        result = await ask(loaded, n_predict=500, sampling=ENDLESS, **fields).one()
        assert (result.n_decoded, result.truncated, result.stop_type) == (500, True, "limit")
        assert result.n_cached < 256


async def test_an_answer_that_fits_is_not_shifted(models: Path) -> None:
    async def answer(**settings: object) -> tuple[int, ...]:
        settings |= {"ctx_size": 256, "parallel": 1}
        async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
            result = await ask(loaded, n_predict=60, sampling=ENDLESS).one()
            assert not result.truncated
            return result.tokens

    assert await answer() == await answer(context_shift=True)


async def test_choices_that_share_their_prompt_cannot_shift(models: Path) -> None:
    settings = SHIFTING | {"ctx_size": 512, "parallel": 2}
    async with running(models / "tiny-llama.gguf", **settings) as engine, engine.use() as loaded:
        assert isinstance(await ask(loaded, n=2, n_predict=500, sampling=ENDLESS).error(), ServerFault)
        assert (await ask(loaded, n_predict=500, sampling=ENDLESS).one()).n_decoded == 500


async def test_a_prompt_is_never_truncated(models: Path) -> None:
    async with running(models / "tiny-llama.gguf", **SHIFTING) as engine, engine.use() as loaded:
        with pytest.raises(ContextExceeded):
            ask(loaded, [5] * 256, sampling=GREEDY)
