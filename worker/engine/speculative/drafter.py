"""What every way to draft is asked and answers. Implemented by `ngram_*` and `draft_*`, used by `speculative`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..batching.decode import DecodedRows, PreparedBatch
from ..batching.slots import Slot


class DraftRequest(NamedTuple):
    """A stream that could use a draft."""

    slot: Slot
    history: list[int]  # prompt and answer, the token sampled last included; grows until the next prompt begins
    max_tokens: int  # tokens that may be checked


class Drafter(Protocol):
    n_max: int
    """Tokens of its longest draft."""

    def begin(self, slot: Slot, history: list[int]) -> None:
        """Another prompt has been computed in the slot."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """For each wish what may follow, best guess; empty: no idea."""

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        """What became of this drafter's last draft for the slot."""

    def on_computed(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        """A batch, or a part of it, has its outputs; no token has been sampled of them yet."""

    def on_shifted(self, slot: Slot, begin: int, end: int) -> None:
        """The slot has forgotten these positions; those behind have moved down."""

    def catch_up(self, slots: Sequence[Slot], n_prompt_with_streams: int) -> None:
        """Before each step: time to keep up with what slots have computed."""

    def close(self) -> None: ...


class HistoryDrafter:
    """A drafter that only looks at the text: what happens in the context does not touch it."""

    def on_computed(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        pass

    def on_shifted(self, slot: Slot, begin: int, end: int) -> None:
        pass

    def catch_up(self, slots: Sequence[Slot], n_prompt_with_streams: int) -> None:
        pass

    def close(self) -> None:
        pass
