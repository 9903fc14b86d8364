"""The scheduler: properties of the plan, and of the choice of a slot, for any snapshot."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.batching.scheduler import (
    TURN,
    BatchGroup,
    BatchLimits,
    BatchPlan,
    GroupHistory,
    SlotFacts,
    SlotWork,
    choose_slot,
    plan,
)

limits = st.builds(BatchLimits, st.integers(1, 600), st.integers(1, 300), st.booleans())
histories = st.builds(
    GroupHistory, st.builds(BatchGroup, st.sampled_from(["generation", "embedding"])), st.integers(0, 10)
)


@st.composite
def works(draw: st.DrawFn, n_batch: int) -> list[SlotWork]:
    work = []
    for slot in range(draw(st.integers(0, 12))):
        if draw(st.booleans()):
            work.append(SlotWork(slot, "generation", draw(st.integers(0, 2000)), False, draw(st.integers(0, 99))))
        else:  # an embedding's prompt fits into a batch; larger ones were rejected before
            work.append(SlotWork(slot, "embedding", draw(st.integers(1, n_batch)), True, draw(st.integers(0, 99))))
    return work


snapshots = limits.flatmap(lambda limit: st.tuples(works(limit.n_batch), st.just(limit), histories))
Snapshot = tuple[list[SlotWork], BatchLimits, GroupHistory]


@given(snapshots)
def test_a_batch_is_never_empty_and_never_too_large(snapshot: Snapshot) -> None:
    work, limit, history = snapshot
    result = plan(work, limit, history)
    assert (result is None) == (not work)
    if result is not None:
        assert 1 <= result.n_tokens <= limit.n_batch


@given(snapshots)
def test_only_one_kind_shares_a_batch_and_embeddings_are_whole(snapshot: Snapshot) -> None:
    work, limit, history = snapshot
    by_slot = {item.slot: item for item in work}
    result = plan(work, limit, history)
    if result is None:
        return
    taken = [*result.generating, *(slot for slot, _ in result.prompts)]
    assert len(taken) == len(set(taken))
    assert {by_slot[slot].kind for slot in taken} == {result.kind}
    for slot, n in result.prompts:
        assert 1 <= n <= by_slot[slot].n_prompt
        assert n == by_slot[slot].n_prompt or not by_slot[slot].whole


@given(snapshots)
def test_running_streams_come_first(snapshot: Snapshot) -> None:
    work, limit, history = snapshot
    result = plan(work, limit, history)
    if result is None or result.kind != "generation":
        return
    streams = [item.slot for item in work if item.generating]
    assert len(result.generating) == min(len(streams), limit.n_batch)
    n_prompt = sum(n for _, n in result.prompts)
    if streams:
        assert n_prompt <= (limit.n_prompt_with_streams if limit.mix else 0)


@given(snapshots)
def test_prompts_of_a_kind_are_served_in_order_of_arrival(snapshot: Snapshot) -> None:
    work, limit, history = snapshot
    result = plan(work, limit, history)
    if result is None or not result.prompts:
        return
    by_slot = {item.slot: item for item in work}
    arrivals = [by_slot[slot].arrived for slot, _ in result.prompts]
    assert arrivals == sorted(arrivals)
    oldest = min(item.arrived for item in work if item.kind == result.kind and not item.generating)
    if result.kind == "generation" or not result.generating:
        assert arrivals[0] == oldest


@given(st.integers(1, 64), st.integers(1, 300), st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(1, 8))
def test_nothing_starves(n_batch: int, n_with_streams: int, inputs: list[int], n_streams: int) -> None:
    """With endless streams, embeddings and a prompt: the last two finish in a bounded number of batches."""
    limit, history = BatchLimits(n_batch, n_with_streams), GroupHistory()
    left = {n_streams + i: min(n, n_batch) for i, n in enumerate(inputs)}
    prompt_slot, prompt_left = 99, 500
    turns = dict.fromkeys(range(n_streams), 0)
    for batch in range(1, 4000):
        work = [SlotWork(i, "generation", 0, last_turn=turn) for i, turn in turns.items()]
        work += [SlotWork(slot, "embedding", n, True, slot) for slot, n in left.items()]
        work += [SlotWork(prompt_slot, "generation", prompt_left, False, 100)] if prompt_left else []
        result = plan(work, limit, history)
        assert result is not None
        history = history.after(result.group)
        for slot in result.generating:
            turns[slot] = batch
        for slot, n in result.prompts:
            if slot == prompt_slot:
                prompt_left -= n
            else:
                del left[slot]
        if not left and (not prompt_left or n_streams >= n_batch):
            break
    else:
        raise AssertionError("something never came to its turn")
    assert batch - min(turns.values()) <= 2 * (TURN + len(inputs)) * (n_streams // n_batch + 2)


def test_streams_beyond_the_batch_take_turns() -> None:
    work = [SlotWork(slot, "generation", 0, last_turn=turn) for slot, turn in enumerate((5, 3, 4))]
    result = plan(work, BatchLimits(2, 10))
    assert result is not None
    assert set(result.generating) == {1, 2}


def slots(*facts: tuple[bool, int, int, float]) -> list[SlotFacts]:
    return [SlotFacts(i, *fact) for i, fact in enumerate(facts)]


def test_slot_choice() -> None:
    never = [(True, 0, 0, -1.0)] * 3
    assert choose_slot(slots(*never), 10, -1, 0.1) == 2, "of slots never used the last one"
    used = slots((True, 20, 0, 7.0), (True, 20, 0, 5.0), (True, 20, 0, 6.0))
    assert choose_slot(used, 10, -1, 0.1) == 1, "least recently used"
    similar = slots((True, 20, 2, 1.0), (True, 20, 5, 9.0), (True, 20, 5, 9.0))
    assert choose_slot(similar, 10, -1, 0.1) == 1, "most similar, the first of equals"
    assert choose_slot(similar, 10, -1, 0.0) == 0, "similarity switched off"
    assert choose_slot(similar, 10, -1, 0.5) == 0, "strictly more than the threshold"
    assert choose_slot(similar, 10, 5, 0.1) == 2, "ids wrap around"
    busy = slots((False, 20, 9, 1.0), (True, 20, 0, 2.0))
    assert choose_slot(busy, 10, -1, 0.1) == 1
    assert choose_slot(busy, 10, 0, 0.1) is None
    assert choose_slot(slots((False, 0, 0, 1.0)), 10, -1, 0.1) is None
    assert choose_slot(slots((True, 3, 0, 1.0)), 0, -1, 0.1) == 0, "an empty prompt is similar to nothing"


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 50), st.integers(0, 50), st.floats(-1, 9)), min_size=1, max_size=8
    ),
    st.integers(0, 60),
    st.integers(-1, 20),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_a_chosen_slot_is_idle(
    facts: list[tuple[bool, int, int, float]], n_prompt: int, wanted: int, threshold: float
) -> None:
    offered = slots(*facts)
    chosen = choose_slot(offered, n_prompt, wanted, threshold)
    if chosen is None:
        assert wanted >= 0 or not any(slot.idle for slot in offered)
    else:
        assert offered[chosen].idle


@given(st.lists(st.tuples(st.sampled_from([(), (0.5,), (1.0,)]), st.integers(0, 100)), min_size=1, max_size=6))
def test_different_adapters_take_turns(slots: list[tuple[tuple[float, ...], int]]) -> None:
    """With endless streams, some with a prompt first: no group waits longer than one turn of every other group."""
    left, last = dict(enumerate(n for _, n in slots)), dict.fromkeys(range(len(slots)), 0)
    n_groups, history = len({adapters for adapters, _ in slots}), GroupHistory()
    for batch in range(1, 150):
        work = [
            SlotWork(slot, "generation", left[slot], False, slot, last[slot], adapters)
            for slot, (adapters, _) in enumerate(slots)
        ]
        result = plan(work, BatchLimits(64, 16), history)
        assert result is not None
        history = history.after(result.group)
        taken = {**dict.fromkeys(result.generating, 0), **dict(result.prompts)}
        assert {slots[slot][0] for slot in taken} == {result.group.adapters}
        for slot, n in taken.items():
            left[slot] -= n
            last[slot] = batch
        assert all(batch - last[slot] <= TURN * n_groups for slot in last if left[slot] == 0 and last[slot])
    assert not any(left.values())


@st.composite
def drafting_streams(draw: st.DrawFn) -> tuple[list[SlotWork], BatchLimits]:
    work = []
    for slot in range(draw(st.integers(1, 8))):
        n_prompt = draw(st.one_of(st.just(0), st.integers(1, 900)))
        work.append(SlotWork(slot, "generation", n_prompt, n_draft=0 if n_prompt else draw(st.integers(0, 70))))
    limit = draw(limits)
    return work, limit._replace(n_with_drafts=draw(st.none() | st.integers(1, limit.n_batch)))


@given(drafting_streams())
def test_drafts_share_the_remaining_room(snapshot: tuple[list[SlotWork], BatchLimits]) -> None:
    work, limit = snapshot
    result, plain = plan(work, limit), plan([item._replace(n_draft=0) for item in work], limit)
    assert result is not None
    assert plain is not None
    wanted, given = {item.slot: item.n_draft for item in work}, dict(result.drafts)
    assert result.n_tokens <= limit.n_batch
    assert result.generating == plain.generating
    assert bool(result.prompts) == bool(plain.prompts)
    assert given.keys() <= set(result.generating)
    assert all(1 <= n <= wanted[slot] for slot, n in given.items())
    if given and limit.n_with_drafts is not None:
        assert result.n_tokens <= limit.n_with_drafts
    cut = [n for slot, n in given.items() if n < wanted[slot]]
    if cut:
        assert max(given.values()) <= min(cut) + 1


def test_images_take_turns_with_streams() -> None:
    limits = BatchLimits(n_batch=512, n_prompt_with_streams=100)
    stream, image = SlotWork(0, "generation", 0), SlotWork(1, "media", 300, arrived=1)
    assert plan([image], limits) == BatchPlan(image.group, prompts=((1, 300),))
    assert plan([image._replace(n_prompt=900)], limits) == BatchPlan(image.group, prompts=((1, 512),))
    history, turns = GroupHistory(), []
    for _ in range(12):
        made = plan([stream, image], limits, history)
        assert made is not None
        history = history.after(made.group)
        turns.append((made.kind, made.n_tokens))
    assert turns == 2 * [*4 * [("generation", 1)], ("media", 100)] + 2 * [("generation", 1)]
    whole = plan([stream, image._replace(whole=True)], limits, GroupHistory(stream.group, 4))
    assert whole == BatchPlan(image.group, prompts=((1, 300),)), "one that cannot be cut"
    assert plan([image, image._replace(slot=2, arrived=0)], limits) == BatchPlan(image.group, prompts=((2, 300),))
