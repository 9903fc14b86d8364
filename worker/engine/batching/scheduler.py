"""What the engine computes next: pure decisions over a snapshot of slots and queue. No clock, no context, no waiting.

`choose_slot` places a request, `plan` composes the next batch. The engine carries both out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

TURN = 4
"""Batches of one group in a row after which work of another group gets one."""

Kind = Literal["generation", "embedding", "media"]
"""Media are vectors in the place of tokens: one image, or stretch of audio, is a batch by itself."""


class BatchGroup(NamedTuple):
    """What may share a batch: work of one kind that is computed with the same adapters."""

    kind: Kind = "generation"
    adapters: tuple[float, ...] = ()  # scales; empty: none acts


_PLAIN = BatchGroup()


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """A slot as a request sees it that looks for a place."""

    id: int
    idle: bool
    n_cached: int  # tokens it remembers
    n_common: int  # of these, how many the request's prompt begins with
    last_used: float  # when it was released; below zero: never


def choose_slot(slots: Sequence[SlotFacts], n_prompt: int, wanted: int, threshold: float) -> int | None:
    """The slot for a prompt: the one asked for, else the most similar one, else the least recently used. None: wait.

    `wanted` below zero leaves the choice; others wrap around. Similar means that more than `threshold` of the prompt is
    remembered; a threshold of 0 turns this off. Of slots used equally long ago the last is taken, as llama-server does.
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
    """What one busy slot could compute next."""

    slot: int
    kind: Kind
    n_prompt: int  # prompt tokens yet to be computed, or those of its next image; 0: one sampled token
    whole: bool = False  # the prompt may not be cut
    arrived: int = 0  # order of arrival
    last_turn: int = 0  # number of the batch it last took part in
    adapters: tuple[float, ...] = ()
    n_draft: int = 0  # guesses at what comes after the sampled token, to be checked with it

    @property
    def group(self) -> BatchGroup:
        return BatchGroup(self.kind, self.adapters)

    @property
    def generating(self) -> bool:
        return self.n_prompt == 0


class BatchLimits(NamedTuple):
    n_batch: int
    n_prompt_with_streams: int  # prompt tokens of a batch that also carries running streams
    mix: bool = True  # prompts may join running streams
    n_with_drafts: int | None = None  # tokens of a batch that checks drafts, None: n_batch


@dataclass(frozen=True, slots=True)
class BatchPlan:
    group: BatchGroup
    generating: tuple[int, ...] = ()  # slots whose sampled token comes next
    prompts: tuple[tuple[int, int], ...] = ()  # (slot, number of prompt tokens)
    drafts: tuple[tuple[int, int], ...] = ()  # (slot, number of drafted tokens), for some of those generating

    @property
    def kind(self) -> Kind:
        return self.group.kind

    @property
    def n_tokens(self) -> int:
        return len(self.generating) + sum(n for _, n in (*self.prompts, *self.drafts))


@dataclass(frozen=True, slots=True)
class GroupHistory:
    """The group of the batches before, and how many in a row were of it."""

    group: BatchGroup = _PLAIN
    streak: int = 0

    def after(self, group: BatchGroup) -> GroupHistory:
        return GroupHistory(group, self.streak + 1 if group == self.group else 1)


def plan(work: Sequence[SlotWork], limits: BatchLimits, history: GroupHistory = GroupHistory()) -> BatchPlan | None:
    """The next batch: running streams first, then prompts in order of arrival, never more than `n_batch` tokens.

    Drafts come last: all streams have their token, and prompts at least half of what is left. None: there is nothing to
    do. Generations and embeddings do not share a batch, nor does work of different adapters; they take turns.
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
    """One image at a time. If streams wait for it they get their turn in between, unless it cannot be cut."""
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
    """The group whose last turn is longest ago."""
    last_turns: dict[BatchGroup, int] = {}
    for item in work:
        last_turns[item.group] = max(item.last_turn, last_turns.get(item.group, 0))
    return min(work, key=lambda item: (last_turns[item.group], item.arrived)).group


def _longest_waiting(streams: list[SlotWork], n: int) -> list[SlotWork]:
    if len(streams) <= n:
        return streams
    return sorted(streams, key=lambda item: item.last_turn)[:n]


def _share(streams: list[SlotWork], room: int) -> tuple[tuple[int, int], ...]:
    """Short drafts first, the longer ones get equal parts of what is left: none crowds out another."""
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
            continue  # a smaller one may still fit; this one leads the next batch, or is refused before it gets here
        taken.append((item.slot, n))
        room -= n
    return taken
