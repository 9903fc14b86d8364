"""Decide which model is evicted, which starts and which is refused: pure functions of a snapshot.

Called by `reducer` after every event, and whenever a `ttl` may be over. Uses no clock, process, log or await. `decide`
tries these rules in order, and the first one that applies is the decision; README.md has the same numbers:

1. A queued model that can never start is refused: pinned models use all places, or exclude it, or its memory would not
   be free without all models that are not pinned. No model is refused for memory while memory may still be freed.
2. `queue_order` and `groups` say which queued model is next. Only this one may start, and only if no reload holds
   starts, at most `PlacementRules.parallel_loads` - 1 others load for the queue, and none of them has an unknown size.
3. Idle models are evicted, never one that is pinned, busy, loading, stopping, queued, or in its `min-stay`:
   a. those that the next model's group excludes;
   b. as many as there are too few places for the unclaimed entries, the lowest priority first, and of equal ones the
      least recently used;
   c. for the next model's memory the fewest, and of those sets the one least worth keeping; none if that is not
      sufficient.
   In b and c, and in 5 and 6, models that a request keeps (`Retention.kept`) are the last choice.
4. The next model starts if a place and its memory are free, and no running model excludes it.
5. With `PlacementRules.preempts`, if nothing else can be done for a model that has waited for
   `PlacementRules.max_wait`, busy models are pre-empted: they accept no new requests and are evicted when they have
   finished.
6. An explicit load (`POST /models/load`) does not wait in the queue and ignores priorities and minimum stays. It
   evicts once: the idle models that exclude it, or one if there is no place, and the fewest for its memory. When they
   have ended, and no reload holds starts, it is refused by rule 1, or because another model excludes it, or for lack of
   a place or memory; otherwise it starts.

A process counts against models-max from its start until it is reaped, and its memory on the host and on each device for
the same time. models-max ≤ 0: no limit, and no eviction for places. Apart from `decide`, an idle model is unloaded when
it has not been used for its `ttl`.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from .groups import blocking_models, exclusion_reason, group_victims, next_in_turn
from .memory_amounts import NOTHING, UNBOUNDED, Limit, Space, smallest_sufficient_set, total
from .queue_order import is_overdue, is_protected
from .snapshot import LoadCommand, PlacementRules, PlacementSnapshot, QueueEntry, Resident, Retention
from .states import ModelState

__all__ = ["LoadCommand", "PlacementRules", "PlacementSnapshot", "QueueEntry", "Resident", "Retention"]  # for callers


class Eviction(Struct, frozen=True):
    model: str
    reason: str


class Refusal(Struct, frozen=True):
    model: str
    reason: str
    is_final: bool = True
    """False if a later try may succeed."""


class Decision(Struct, frozen=True):
    evict: tuple[Eviction, ...] = ()
    preempt: tuple[Eviction, ...] = ()
    """Busy models that accept no new requests from now on and are evicted when they have finished."""
    start: str | None = None
    refuse: tuple[Refusal, ...] = ()
    for_command: str | None = None
    """The model that is loaded explicitly, if the decision is for it and not for the queue."""

    def __bool__(self) -> bool:
        return bool(self.evict or self.preempt or self.refuse) or self.start is not None


def decide(snapshot: PlacementSnapshot) -> Decision:
    """Return what to do now for the queue and for explicit loads; an empty decision if there is nothing to do."""
    decision = _decide_queue(snapshot)  # rules 1 to 5
    for load in () if decision else snapshot.loads:
        if decision := _decide_load(snapshot, load):  # rule 6
            break
    return decision


def _decide_queue(snapshot: PlacementSnapshot) -> Decision:
    if not snapshot.queue:
        return Decision()
    if refused := _refusals(snapshot):  # rule 1
        return Decision(refuse=refused)
    victims = _eviction_candidates(snapshot)
    head = next_in_turn(snapshot, victims)  # rule 2
    model = None if head is None or not _may_load(snapshot) else head.model
    decision = Decision(evict=_evictions(snapshot, model, victims), start=_next_start(snapshot, model))  # rules 3, 4
    if decision or head is None or model is None or not (snapshot.rules.preempts and is_overdue(snapshot, head)):
        return decision
    return Decision(preempt=_preemptions(snapshot, model, victims))  # rule 5


def _decide_load(snapshot: PlacementSnapshot, load: LoadCommand) -> Decision:
    model = load.model
    if load.may_evict and (victims := victims_for_load(snapshot, model)):
        reason = f"a load of {model} was requested, and there is no room for both"
        return Decision(evict=tuple(Eviction(name, reason) for name in victims), for_command=model)
    if load.is_waiting or snapshot.starts_held:
        return Decision()
    if refusal := _load_refusal(snapshot, model):
        return Decision(refuse=(refusal,), for_command=model)
    return Decision(start=model, for_command=model)


def expired(snapshot: PlacementSnapshot) -> tuple[Eviction, ...]:
    """Return an eviction for each idle model whose `ttl` is over."""
    return tuple(
        Eviction(resident.name, f"not used for {resident.retention.ttl:g} s")
        for resident in snapshot.residents
        if resident.expires_at is not None and resident.expires_at <= snapshot.now
    )


def next_expiry(snapshot: PlacementSnapshot) -> float | None:
    """Return the time at which the next `ttl` is over if nothing changes before; None: no model expires."""
    later = (resident.expires_at for resident in snapshot.residents if resident.expires_at is not None)
    return min((when for when in later if when > snapshot.now), default=None)


def impossibility_reason(snapshot: PlacementSnapshot, model: str) -> str:
    """Return why `model` can never start in the current situation; an empty string if it can."""
    pinned = [resident for resident in snapshot.residents if resident.is_pinned and resident.name != model]
    names = ", ".join(sorted(resident.name for resident in pinned))
    if 0 < snapshot.models_max <= len(pinned):
        return f"pinned models use all {snapshot.models_max} places (--models-max): {names}"
    if excluded := exclusion_reason(snapshot, model):
        return excluded
    kept = total(resident.space for resident in pinned)
    needs = snapshot.resident(model).space_within(snapshot.limit - kept)
    lacking = needs.exceeding(snapshot.limit - kept)
    if lacking == NOTHING:
        return ""
    detail = (
        f", of which pinned models use {kept.restricted_to(lacking)}: {names}"
        if kept.restricted_to(lacking) != NOTHING
        else ""
    )
    return (
        f"it needs {needs.restricted_to(lacking)}, and models may use {snapshot.limit.restricted_to(lacking)}{detail}"
    )


def has_place(snapshot: PlacementSnapshot) -> bool:
    return snapshot.models_max <= 0 or _running(snapshot) < snapshot.models_max


def has_space(snapshot: PlacementSnapshot, model: str) -> bool:
    """Return True if enough of each memory that `model` needs is free."""
    return _lacking(snapshot, model, snapshot.limit - _used_space(snapshot, but=model)) == NOTHING


def may_start(snapshot: PlacementSnapshot, model: str) -> bool:
    return has_place(snapshot) and has_space(snapshot, model) and not blocking_models(snapshot, model)


def waits_for_space(snapshot: PlacementSnapshot) -> bool:
    """Return True if the next model waits only for memory, which other programs may free without an event here."""
    head = next_in_turn(snapshot, _eviction_candidates(snapshot))
    return head is not None and has_place(snapshot) and not has_space(snapshot, head.model)


def victims_for_load(snapshot: PlacementSnapshot, model: str) -> list[str]:
    """Return the idle models to evict for a `POST /models/load`; none if that is not sufficient."""
    idle = _idle_candidates(snapshot)
    leaving = group_victims(snapshot, model, idle)
    if leaving is None:
        return []
    if not leaving and not has_place(snapshot):
        leaving = idle[:1]
    space = _victims_for_space(snapshot, model, idle, leaving)
    return [resident.name for resident in [*leaving, *space]]


def least_valuable_idle(snapshot: PlacementSnapshot, model: str) -> str | None:
    """Return the idle model that is least worth keeping, to evict it for a model that ran out of memory in its load."""
    idle = [one for one in _eviction_candidates(snapshot) if one.name != model]
    return min(idle, key=lambda one: _keep_value(snapshot, one)).name if idle else None


def _load_refusal(snapshot: PlacementSnapshot, model: str) -> Refusal | None:
    """Return why an explicit load is refused; None if the model may start."""
    if obstacle := impossibility_reason(snapshot, model):
        return Refusal(model, obstacle)
    if others := blocking_models(snapshot, model):
        names = ", ".join(other.name for other in others)
        return Refusal(model, f"model '{model}' cannot run at the same time as {names}, try again later", False)
    if not has_place(snapshot):
        return Refusal(model, "model limit reached, try again later", False)
    if not has_space(snapshot, model):
        needs = snapshot.resident(model).expected
        return Refusal(model, f"memory limit reached, try again later: model '{model}' needs {needs}", False)
    return None


def _keep_value(snapshot: PlacementSnapshot, resident: Resident) -> tuple[bool, float, float, str]:
    return (
        resident.retention.kept,
        resident.policy.priority,
        -_eviction_benefit(snapshot, resident),
        resident.name,
    )


def _refusals(snapshot: PlacementSnapshot) -> tuple[Refusal, ...]:
    """Return the refusals for queued models that can never start.

    Memory is not a reason while models stop, since theirs counts as used until the system has freed it.
    """
    may_grow = snapshot.is_settling or _count(snapshot.residents, ModelState.STOPPING) > 0
    judged = replace(snapshot, limit=UNBOUNDED) if may_grow else snapshot
    waiting = (entry.model for entry in snapshot.queue if not entry.claimed)
    reasons = (
        (model, impossibility_reason(judged, model)) for model in waiting if not snapshot.resident(model).is_pinned
    )
    return tuple(Refusal(model, reason) for model, reason in reasons if reason)


def _next_start(snapshot: PlacementSnapshot, model: str | None) -> str | None:
    if model is None or not snapshot.resident(model).state.is_down or blocking_models(snapshot, model):
        return None
    if 0 < snapshot.models_max <= _running(snapshot) + _pending(snapshot) or not has_space(snapshot, model):
        return None
    return model


def _may_load(snapshot: PlacementSnapshot) -> bool:
    """Return True if one more model may load for the queue.

    While a model of unknown size loads, no other may start, because the free memory cannot be predicted.
    """
    if snapshot.starts_held:
        return False
    loading = [snapshot.resident(entry.model) for entry in snapshot.queue if entry.claimed]
    is_unknown = snapshot.limit != UNBOUNDED and any(resident.space == NOTHING for resident in loading)
    return not loading or (not is_unknown and len(loading) < snapshot.rules.parallel_loads)


def _evictions(snapshot: PlacementSnapshot, model: str | None, victims: list[Resident]) -> tuple[Eviction, ...]:
    """Return the idle models to evict now. `model`: the next one of the queue, if it may load now."""
    excluded = group_victims(snapshot, model, victims) if model else []
    evictions = [Eviction(one.name, f"idle, and {model} cannot run at the same time") for one in excluded or ()]
    others = [one for one in victims if one not in (excluded or ())]
    chosen: list[Resident] = []
    if snapshot.models_max > 0:
        waiting = sum(1 for entry in snapshot.queue if not entry.claimed)
        chosen = others[: max(0, waiting - _free_places(snapshot) - len(evictions))]
    reason = f"idle, and {len(snapshot.queue)} models are queued for {snapshot.models_max} places (--models-max)"
    evictions += [Eviction(one.name, reason) for one in chosen]
    if model and excluded is not None:
        reason = f"idle, and {model} needs {snapshot.resident(model).space}"
        more = _victims_for_space(snapshot, model, victims, [*excluded, *chosen])
        evictions += [Eviction(one.name, reason) for one in more]
    return tuple(evictions)


def _preemptions(snapshot: PlacementSnapshot, model: str, victims: list[Resident]) -> tuple[Eviction, ...]:
    """Return the busy models to pre-empt for an overdue model; none while a model stops or if it is not sufficient."""
    if _count(snapshot.residents, ModelState.STOPPING) or not snapshot.resident(model).state.is_down:
        return ()
    in_use = [one for one in snapshot.residents if one.state.is_ready and one.leases and not one.is_pinned]
    in_use.sort(key=lambda one: (one.retention.kept, one.policy.priority, one.ready_since, one.name))
    leaving = group_victims(snapshot, model, [*victims, *in_use])
    if leaving is None:
        return ()
    if not leaving and 0 < snapshot.models_max <= _running(snapshot) + _pending(snapshot):
        leaving = in_use[:1]
    leaving = [*leaving, *_victims_for_space(snapshot, model, [*victims, *in_use], leaving)]
    reason = f"{model} has waited for {snapshot.rules.max_wait:g} s"
    return tuple(Eviction(one.name, reason) for one in leaving if one.leases)


def _victims_for_space(
    snapshot: PlacementSnapshot, model: str, victims: list[Resident], leaving: list[Resident]
) -> list[Resident]:
    """Return the victims that must be evicted for memory in addition to `leaving`; none if that is not sufficient."""
    staying = [resident for resident in victims if resident not in leaving]
    gone = total(resident.space for resident in leaving)
    stopping = total(resident.space for resident in snapshot.residents if resident.state is ModelState.STOPPING)
    left = snapshot.limit - (_used_space(snapshot, but=model) - gone - stopping)
    ranked = sorted(staying, key=lambda one: _keep_value(snapshot, one))
    first_choice = [one for one in ranked if not one.retention.kept]
    for allowed in (first_choice, ranked):
        candidates = [(resident, resident.space) for resident in allowed]
        found = smallest_sufficient_set(candidates, left, lambda left: _lacking(snapshot, model, left))
        if found is not None or len(allowed) == len(ranked):
            return found or []
    return []


def _lacking(snapshot: PlacementSnapshot, model: str, left: Limit) -> Space:
    """Return the memory that `model` would lack if `left` were free."""
    return snapshot.resident(model).space_within(left).exceeding(left)


def _eviction_benefit(snapshot: PlacementSnapshot, resident: Resident) -> float:
    """Return idle time × size ÷ load time: the benefit per second of loading it again."""
    idle = max(0.0, snapshot.now - resident.last_used)
    return idle * resident.space.total / max(resident.load_seconds, 0.01)


def _used_space(snapshot: PlacementSnapshot, but: str) -> Space:
    """Return the memory of all models except `but` that run or whose start is in progress."""
    starting = {entry.model for entry in snapshot.queue if entry.claimed}
    return total(
        resident.space
        for resident in snapshot.residents
        if resident.name != but and (resident.state.is_running or resident.name in starting)
    )


def _free_places(snapshot: PlacementSnapshot) -> int:
    """Return the places that are free or will be when models have stopped, minus those of claimed entries."""
    return (
        snapshot.models_max - _running(snapshot) + _count(snapshot.residents, ModelState.STOPPING) - _pending(snapshot)
    )


def _pending(snapshot: PlacementSnapshot) -> int:
    """Return the number of claimed entries without a process."""
    return sum(1 for entry in snapshot.queue if entry.claimed and snapshot.resident(entry.model).state.is_down)


def _eviction_candidates(snapshot: PlacementSnapshot) -> list[Resident]:
    return [resident for resident in _idle_candidates(snapshot) if not is_protected(snapshot, resident)]


def _idle_candidates(snapshot: PlacementSnapshot) -> list[Resident]:
    """Return the models that are idle, not queued and not pinned, in the order of eviction."""
    wanted = {entry.model for entry in snapshot.queue}
    idle = (
        resident
        for resident in snapshot.residents
        if resident.state.is_ready and not resident.leases and not resident.is_pinned and resident.name not in wanted
    )
    return sorted(idle, key=lambda one: (one.retention.kept, one.policy.priority, one.last_used, one.name))


def _running(snapshot: PlacementSnapshot) -> int:
    return sum(1 for resident in snapshot.residents if resident.state.is_running)


def _count(residents: Iterable[Resident], state: ModelState) -> int:
    return sum(1 for resident in residents if resident.state is state)
