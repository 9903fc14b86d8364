"""Test how slots and context follow from the options. A test of the engine compares them with llama.cpp."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from llama_corral.presets.context_shape import PADDING, ContextShape, context_shape, padded
from llama_corral.presets.options.context import AUTO_SLOTS
from llama_corral.presets.options.settings import Settings

tokens = st.integers(0, 300_000)
positive = st.integers(1, 300_000)
shapes = st.builds(
    ContextShape,
    n_ctx=tokens,
    n_slots=st.integers(1, 256),
    unified=st.booleans(),
    n_ctx_per_slot=tokens,
    n_batch=st.integers(1, 4096),
    n_ubatch=st.integers(1, 4096),
)


@given(positive)
def test_padding_is_the_next_multiple(n: int) -> None:
    assert padded(n) % PADDING == 0
    assert n <= padded(n) < n + PADDING


@given(shapes, positive)
def test_the_context_is_divided_into_equal_streams(shape: ContextShape, n_ctx_train: int) -> None:
    context = shape.resolve(n_ctx_train)
    assert context.n_slots == shape.n_slots
    assert context.n_streams == (1 if shape.unified else shape.n_slots)
    assert context.n_ctx == context.n_streams * context.n_ctx_seq
    assert context.n_ctx_seq % PADDING == 0


@given(shapes, positive)
def test_no_token_that_was_asked_for_is_missing(shape: ContextShape, n_ctx_train: int) -> None:
    """Padding only adds: less than one block for the whole context and for each stream."""
    asked = shape.n_ctx or n_ctx_train
    context = shape.resolve(n_ctx_train)
    assert asked <= context.n_ctx < asked + PADDING * (context.n_streams + 1)


@given(shapes, positive)
def test_a_slot_has_at_most_its_limit_its_stream_and_the_trained_context(shape: ContextShape, n_ctx_train: int) -> None:
    context = shape.resolve(n_ctx_train)
    limits = {context.n_ctx_seq, n_ctx_train} | ({shape.n_ctx_per_slot} - {0})
    assert context.n_ctx_slot == min(limits)
    assert context.n_ctx_slot > 0


@given(shapes, positive, positive)
def test_the_trained_context_gives_the_size_only_if_none_is_asked_for(
    shape: ContextShape, n_ctx_train: int, other: int
) -> None:
    if shape.n_ctx:
        assert shape.resolve(n_ctx_train).n_ctx == shape.resolve(other).n_ctx
    elif shape.unified:
        assert shape.resolve(n_ctx_train).n_ctx == padded(n_ctx_train)


@given(shapes, positive)
def test_the_limit_of_a_slot_does_not_change_the_cache(shape: ContextShape, n_ctx_train: int) -> None:
    free = ContextShape(shape.n_ctx, shape.n_slots, shape.unified, 0, shape.n_batch, shape.n_ubatch)
    assert free.resolve(n_ctx_train).n_ctx == shape.resolve(n_ctx_train).n_ctx


@given(shapes, positive, st.booleans())
def test_a_physical_batch_fits_into_batch_and_context(shape: ContextShape, n_ctx_train: int, is_causal: bool) -> None:
    context = shape.resolve(n_ctx_train, is_causal=is_causal)
    assert 1 <= context.n_ubatch <= min(shape.n_ubatch, shape.n_batch)
    if is_causal:
        assert context.n_ubatch <= context.n_ctx


@given(tokens, st.one_of(st.just(-1), st.integers(1, 256)), st.sampled_from([None, True, False]), tokens)
def test_options(ctx_size: int, parallel: int, kv_unified: bool | None, per_slot: int) -> None:
    shape = context_shape(
        Settings.of(ctx_size=ctx_size, parallel=parallel, kv_unified=kv_unified, kv_unified_per_slot=per_slot)
    )
    assert shape.n_slots == (AUTO_SLOTS if parallel == -1 else parallel)
    assert shape.unified == (parallel == -1 or kv_unified is True)
    assert shape.n_ctx == (ctx_size or per_slot * shape.n_slots)
    assert shape.n_ctx_per_slot == per_slot


def test_an_embedding_is_computed_in_one_physical_batch() -> None:
    sizes = {"batch_size": 2048, "ubatch_size": 300}
    assert context_shape(Settings.of(**sizes)).n_batch == 2048
    for option in ("embeddings", "reranking"):
        assert context_shape(Settings.of(**sizes, **{option: True})).n_batch == 300
