"""What every way to draft is asked and answers. Implemented by `ngram_*` and `draft_*`, used by `speculative`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..batching.decode import Computed, Filled
from ..batching.slots import Slot


class Wish(NamedTuple):
    """A stream that could use a draft."""

    slot: Slot
    history: list[int]  # prompt and answer, the token sampled last included; grows until the next prompt begins
    most: int  # tokens that may be checked


class Drafter(Protocol):
    n_max: int
    """Tokens of its longest draft."""

    def begin(self, slot: Slot, history: list[int]) -> None:
        """Another prompt has been computed in the slot."""

    def draft(self, wishes: Sequence[Wish]) -> list[list[int]]:
        """For each wish what may follow, best guess; empty: no idea."""

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        """What became of this drafter's last draft for the slot."""

    def computed(self, filled: Filled, part: Computed) -> None:
        """A batch, or a part of it, has its outputs; no token has been sampled of them yet."""

    def shifted(self, slot: Slot, begin: int, end: int) -> None:
        """The slot has forgotten these positions; those behind have moved down."""

    def follow(self, slots: Sequence[Slot], n_beside_streams: int) -> None:
        """Before each step: time to keep up with what slots have computed."""

    def close(self) -> None: ...


class HistoryDrafter:
    """A drafter that only looks at the text: what happens in the context does not touch it."""

    def computed(self, filled: Filled, part: Computed) -> None:
        pass

    def shifted(self, slot: Slot, begin: int, end: int) -> None:
        pass

    def follow(self, slots: Sequence[Slot], n_beside_streams: int) -> None:
        pass

    def close(self) -> None:
        pass
