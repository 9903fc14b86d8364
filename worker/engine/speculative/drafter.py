"""Defines the interface of all drafters. Implemented by `ngram_*` and `draft_*`, used by `speculative`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..batching.decode import DecodedRows, PreparedBatch
from ..batching.slots import Slot


class DraftRequest(NamedTuple):
    """A stream that can use a draft."""

    slot: Slot
    history: list[int]  # prompt and answer, including the token sampled last; grows until the next prompt begins
    max_tokens: int  # the most tokens that can be verified


class Drafter(Protocol):
    n_max: int
    """Number of tokens of its longest draft."""

    def begin(self, slot: Slot, history: list[int]) -> None:
        """Start on a new task of the slot, whose prompt has been computed."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Return a draft for each request: the tokens that probably follow; empty if the drafter has none."""

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        """Record how many tokens of this drafter's last draft for the slot were accepted."""

    def on_computed(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        """Read the outputs of a batch, or of a part of it, before tokens are sampled from them."""

    def on_shifted(self, slot: Slot, begin: int, end: int) -> None:
        """Follow a context shift: the slot removed positions begin … end - 1 and moved the later ones down."""

    def catch_up(self, slots: Sequence[Slot], n_prompt_with_streams: int) -> None:
        """Compute what the slots have computed meanwhile. Called before each step.

        While streams run, `n_prompt_with_streams` limits the tokens of a step.
        """

    def close(self) -> None: ...


class HistoryDrafter:
    """A drafter that uses only the text, so that changes of the context do not concern it."""

    def on_computed(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        pass

    def on_shifted(self, slot: Slot, begin: int, end: int) -> None:
        pass

    def catch_up(self, slots: Sequence[Slot], n_prompt_with_streams: int) -> None:
        pass

    def close(self) -> None:
        pass
