"""Decides what the engine computes next, from a snapshot of slots and queue. Pure: no clock, no context, no waiting.

`choose_slot` selects the slot of a request, `plan` composes the next batch. The engine carries out both decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

TURN = 4
"""Number of consecutive batches of one group after which another group gets a batch."""

Kind = Literal["generation", "embedding", "media"]
"""Media are vectors instead of tokens: one image, or section of audio, is a separate batch."""


class BatchGroup(NamedTuple):
    """Work that may share a batch: of the same kind and with the same adapters."""

    kind: Kind = "generation"
    adapters: tuple[float, ...] = ()  # scales; empty: no adapter is active


_PLAIN = BatchGroup()


class SlotFacts(Struct, frozen=True):
    """The properties of a slot that decide if a request gets it."""

    id: int
    idle: bool
    n_cached: int  # tokens in the slot
    n_common: int  # length of the prefix that these and the request's prompt have in common
    last_used: float  # when it was released; below zero: never


def choose_slot(slots: Sequence[SlotFacts], n_prompt: int, wanted: int, threshold: float) -> int | None:
    """Return the slot for a prompt: the requested one, else the most similar, else the least recently used. None: wait.

    `wanted` below zero means any slot; other values wrap around. A slot is similar if it has cached more than the
    fraction `threshold` of the prompt; 0 turns this off. Of slots released at the same time the last is used, as in
    llama-server.
    """
    if wanted >= 0:
        slot = slots[wanted % len(slots)]
        return slot.id if slot.idle else None
    idle = [slot for slot in slots if slot.idle]
    if threshold and n_prompt:
        similar = [slot for slot in idle if slot.n_cached and slot.n_common / n_prompt > threshold]
        if similar:
            return max(similar, key=lambda slot: slot.n_common).id
    if not idle:
        return None
    oldest = min(slot.last_used for slot in idle)
    return [slot.id for slot in idle if slot.last_used == oldest][-1]


class SlotWork(NamedTuple):
    """The work of one busy slot that can be computed next."""

    slot: int
    kind: Kind
    n_prompt: int  # prompt tokens to compute, or those of its next image; 0: one sampled token
    whole: bool = False  # True if the prompt may not be split
    arrived: int = 0  # order of arrival
    last_turn: int = 0  # number of the last batch that contained rows of it
    adapters: tuple[float, ...] = ()
    n_draft: int = 0  # draft tokens to verify together with the sampled token

    @property
    def group(self) -> BatchGroup:
        return BatchGroup(self.kind, self.adapters)

    @property
    def generating(self) -> bool:
        return self.n_prompt == 0


class BatchLimits(NamedTuple):
    n_batch: int
    n_prompt_with_streams: int  # max. prompt tokens of a batch that also contains running streams
    mix: bool = True  # True if prompts and running streams may share a batch
    n_with_drafts: int | None = None  # max. tokens of a batch with drafts; None: n_batch


class BatchPlan(Struct, frozen=True):
    group: BatchGroup
    generating: tuple[int, ...] = ()  # slots whose sampled token is computed
    prompts: tuple[tuple[int, int], ...] = ()  # (slot, number of prompt tokens)
    drafts: tuple[tuple[int, int], ...] = ()  # (slot, number of drafted tokens), for some of those generating

    @property
    def kind(self) -> Kind:
        return self.group.kind

    @property
    def n_tokens(self) -> int:
        return len(self.generating) + sum(n for _, n in (*self.prompts, *self.drafts))


class GroupHistory(Struct, frozen=True):
    """The group of the last batch, and the number of consecutive batches of this group."""

    group: BatchGroup = _PLAIN
    streak: int = 0

    def after(self, group: BatchGroup) -> GroupHistory:
        return GroupHistory(group, self.streak + 1 if group == self.group else 1)


NO_HISTORY = GroupHistory()


def plan(work: Sequence[SlotWork], limits: BatchLimits, history: GroupHistory = NO_HISTORY) -> BatchPlan | None:
    """Return the next batch: running streams first, then prompts in order of arrival, at most `n_batch` tokens.

    Drafts have the lowest priority: all streams get their token, and prompts at least half of the remaining space.
    None: there is no work. Generations, embeddings and media do not share a batch, nor does work with different
    adapters; they take turns.
    """
    if not work:
        return None
    group = _turn(work, history)
    mine = [item for item in work if item.group == group]
    streams = _longest_waiting([item for item in mine if item.generating], limits.n_batch)
    prompts = sorted((item for item in mine if not item.generating), key=lambda item: item.arrived)
    room = limits.n_batch - len(streams)
    mixed = bool(prompts) and (limits.mix or not streams)
    drafts = _share(streams, room // 2 if mixed else room)
    room -= sum(n for _, n in drafts)
    if streams:
        room = min(room, max(1, limits.n_prompt_with_streams)) if limits.mix else 0
    if group.kind == "media":
        return BatchPlan(group, prompts=(_media(prompts[0], limits, any(item.generating for item in work)),))
    made = BatchPlan(group, tuple(item.slot for item in streams), tuple(_fill(prompts, room)), drafts)
    if drafts and limits.n_with_drafts is not None and made.n_tokens > limits.n_with_drafts:
        return replace(made, drafts=())
    return made


def _media(item: SlotWork, limits: BatchLimits, beside_streams: bool) -> tuple[int, int]:
    """Return (slot, number of rows) of the next part of an image. With streams it is split, unless it must be whole."""
    room = max(1, limits.n_prompt_with_streams) if beside_streams and not item.whole else limits.n_batch
    return item.slot, min(item.n_prompt, room, limits.n_batch)


def _turn(work: Sequence[SlotWork], history: GroupHistory) -> BatchGroup:
    groups = {item.group for item in work}
    if len(groups) == 1:
        return groups.pop()
    if history.streak >= TURN:
        return _least_served([item for item in work if item.group != history.group])
    streams = [item for item in work if item.generating]
    if any(item.group == history.group for item in streams):
        return history.group
    if streams:
        return _least_served(streams)
    return min(work, key=lambda item: item.arrived).group


def _least_served(work: Sequence[SlotWork]) -> BatchGroup:
    """Return the group whose last batch is the longest time ago."""
    last_turns: dict[BatchGroup, int] = {}
    for item in work:
        last_turns[item.group] = max(item.last_turn, last_turns.get(item.group, 0))
    return min(work, key=lambda item: (last_turns[item.group], item.arrived)).group


def _longest_waiting(streams: list[SlotWork], n: int) -> list[SlotWork]:
    if len(streams) <= n:
        return streams
    return sorted(streams, key=lambda item: item.last_turn)[:n]


def _share(streams: list[SlotWork], room: int) -> tuple[tuple[int, int], ...]:
    """Share the room among drafts: short drafts first, the longer ones get equal parts of the remaining room."""
    drafting = sorted((item for item in streams if item.n_draft), key=lambda item: item.n_draft)
    shares = []
    for i, item in enumerate(drafting):
        n = min(item.n_draft, room // (len(drafting) - i))
        room -= n
        if n:
            shares.append((item.slot, n))
    return tuple(shares)


def _fill(prompts: list[SlotWork], room: int) -> list[tuple[int, int]]:
    taken: list[tuple[int, int]] = []
    for item in prompts:
        n = min(item.n_prompt, room)
        if n == 0:
            break
        if item.whole and n < item.n_prompt:
            continue  # a smaller one may still fit; this one is first in the next batch (larger ones were rejected)
        taken.append((item.slot, n))
        room -= n
    return taken
