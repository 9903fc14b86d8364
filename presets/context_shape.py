"""Compute the slots and the context of a model from its options, as llama-server and llama.cpp do. Pure.

The worker's engine creates the context with it, and the router's memory estimate counts its KV cells with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from .options.context import AUTO_SLOTS

if TYPE_CHECKING:
    from .options.settings import Settings

PADDING = 256
"""llama.cpp rounds contexts up to a multiple of this many tokens (`GGML_PAD`)."""


class ResolvedContext(Struct, frozen=True):
    """The context that llama.cpp creates for one model, in tokens."""

    n_ctx: int
    """Tokens of all slots together."""
    n_ctx_seq: int
    """Tokens of one stream of the KV cache. With a unified cache there is one stream for all slots."""
    n_ctx_slot: int
    """Maximum tokens of one slot's prompt and answer."""
    n_slots: int
    n_streams: int
    """Separate parts of the KV cache."""
    n_ubatch: int
    """Maximum tokens of a physical batch."""


class ContextShape(Struct, frozen=True):
    """The slots and the context that options ask for, in tokens."""

    n_ctx: int = 0
    """Tokens of all slots together; 0: as many as the model was trained with."""
    n_slots: int = AUTO_SLOTS
    unified: bool = True
    """True if all slots share one KV cache."""
    n_ctx_per_slot: int = 0
    """Maximum tokens of one slot; 0: no limit. It does not make the KV cache smaller."""
    n_batch: int = 2048
    n_ubatch: int = 512

    def resolve(self, n_ctx_train: int, *, is_causal: bool = True) -> ResolvedContext:
        """Return the context of a model that was trained with `n_ctx_train` tokens; 0: unknown.

        `is_causal`: False for encoders, whose batches may be larger than the context.
        """
        asked = self.n_ctx or n_ctx_train
        n_batch = min(asked, self.n_batch) if is_causal else self.n_batch
        n_streams = 1 if self.unified else self.n_slots
        n_ctx_seq = padded(padded(asked) // n_streams)
        limits = (n_ctx_seq, self.n_ctx_per_slot, n_ctx_train)
        return ResolvedContext(
            n_ctx=n_ctx_seq * n_streams,
            n_ctx_seq=n_ctx_seq,
            n_ctx_slot=min((limit for limit in limits if limit > 0), default=0),
            n_slots=self.n_slots,
            n_streams=n_streams,
            n_ubatch=min(self.n_ubatch, n_batch),
        )


def context_shape(settings: Settings) -> ContextShape:
    """Return what the options ask for. Without `--ctx-size` the limit of a slot gives the size of the whole context."""
    s = settings
    n_slots = AUTO_SLOTS if s.context.parallel < 0 else max(1, s.context.parallel)
    n_ubatch = s.context.ubatch_size or s.context.batch_size
    must_fit = (
        s.endpoints.embeddings or s.endpoints.reranking
    )  # an embedding's input must be computed in one physical batch
    return ContextShape(
        n_ctx=s.context.ctx_size or n_slots * s.context.kv_unified_per_slot,
        n_slots=n_slots,
        unified=bool(s.context.kv_unified) or s.context.parallel < 0,
        n_ctx_per_slot=s.context.kv_unified_per_slot,
        n_batch=min(s.context.batch_size, n_ubatch) if must_fit else s.context.batch_size,
        n_ubatch=n_ubatch,
    )


def padded(n_tokens: int) -> int:
    """Round up to a multiple of `PADDING`."""
    return -(-n_tokens // PADDING) * PADDING
