"""Who must leave, who may start and who waits in vain: pure decisions over a snapshot.

Called by `lifecycle` after every change, and when a model's time is over; knows no clock, process, log or await. The
rules:

- A process counts against models-max from its start until it is reaped. models-max ≤ 0: no limit, nobody is evicted.
- It takes its space of memory just as long, of the machine's and of each device's. What all take together of any that
  the next one needs stays below its limit.
- The queue has one entry per model. `queue_order` says whose turn it is; only that one may start, once a place is free
  and its space as well, and beside no more than `PlacementRules.parallel_loads` - 1 others that load for the queue.
- As many idle models are asked to leave as unclaimed entries lack places; never one that is busy, loading, stopping
  or wanted by an entry, or was loaded less than its `min-stay` ago. Of the lowest priority the one used longest ago
  leaves first.
- For the next one's space the fewest leave, and of those the ones least worth keeping; nobody, if that would not do.
- Those that the next one's group excludes leave as well (`groups`), and it starts when they are gone.
- With `PlacementRules.preempts`, for one that has waited for `PlacementRules.max_wait` models in use take nothing new,
and leave when they
  have finished.
- A pinned model is never evicted. Once pinned models have all places, what is queued is refused at once, and so is
  whoever's space would not be free with all others gone.
- A model whose `ttl` is over since it was last used leaves, if it is idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .groups import blocking_models, exclusion_reason, group_victims, next_in_turn
from .memory_amounts import NOTHING, UNBOUNDED, Limit, Space, smallest_sufficient_set, total
from .queue_order import is_overdue, is_protected
from .snapshot import PlacementRules, PlacementSnapshot, QueueEntry, Resident, Retention
from .states import ModelState

__all__ = ["PlacementRules", "PlacementSnapshot", "QueueEntry", "Resident", "Retention"]  # what its callers hand it


@dataclass(frozen=True, slots=True)
class Eviction:
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    evict: tuple[Eviction, ...] = ()
    preempt: tuple[Eviction, ...] = ()
    """They are in use: to take nothing new, and to leave once they have finished."""
    start: str | None = None
    refuse: tuple[Refusal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.evict or self.preempt or self.refuse) or self.start is not None


def decide(snapshot: PlacementSnapshot) -> Decision:
    """What to do now for the queue."""
    if not snapshot.queue:
        return Decision()
    if refused := _refusals(snapshot):
        return Decision(refuse=refused)
    victims = _eviction_candidates(snapshot)
    head = next_in_turn(snapshot, victims)
    model = None if head is None or not _may_load(snapshot) else head.model
    decision = Decision(evict=_evictions(snapshot, model, victims), start=_next_start(snapshot, model))
    if decision or head is None or model is None or not (snapshot.rules.preempts and is_overdue(snapshot, head)):
        return decision
    return Decision(preempt=_preemptions(snapshot, model, victims))


def expired(snapshot: PlacementSnapshot) -> tuple[Eviction, ...]:
    """The idle whose time is over."""
    return tuple(
        Eviction(resident.name, f"not used for {resident.retention.ttl:g} s")
        for resident in snapshot.residents
        if resident.expires_at is not None and resident.expires_at <= snapshot.now
    )


def next_expiry(snapshot: PlacementSnapshot) -> float | None:
    """When to ask for the expired again, if nothing changes until then."""
    later = (resident.expires_at for resident in snapshot.residents if resident.expires_at is not None)
    return min((when for when in later if when > snapshot.now), default=None)


def impossibility_reason(snapshot: PlacementSnapshot, model: str) -> str:
    """Why `model` would wait in vain as things are; nothing if its turn may come."""
    pinned = [resident for resident in snapshot.residents if resident.is_pinned and resident.name != model]
    names = ", ".join(sorted(resident.name for resident in pinned))
    if 0 < snapshot.models_max <= len(pinned):
        return f"pinned models have all {snapshot.models_max} places (--models-max): {names}"
    if excluded := exclusion_reason(snapshot, model):
        return excluded
    kept = total(resident.space for resident in pinned)
    needs = snapshot.resident(model).space_within(snapshot.limit - kept)
    lacking = needs.exceeding(snapshot.limit - kept)
    if lacking == NOTHING:
        return ""
    beside = (
        f", of which pinned ones have {kept.restricted_to(lacking)}: {names}"
        if kept.restricted_to(lacking) != NOTHING
        else ""
    )
    return (
        f"it needs {needs.restricted_to(lacking)}, and models may take {snapshot.limit.restricted_to(lacking)}{beside}"
    )


def has_place(snapshot: PlacementSnapshot) -> bool:
    return snapshot.models_max <= 0 or _running(snapshot) < snapshot.models_max


def has_space(snapshot: PlacementSnapshot, model: str) -> bool:
    """Of each memory that it needs any of."""
    return _lacking(snapshot, model, snapshot.limit - _used_space(snapshot, but=model)) == NOTHING


def may_start(snapshot: PlacementSnapshot, model: str) -> bool:
    return has_place(snapshot) and has_space(snapshot, model) and not blocking_models(snapshot, model)


def waits_for_space(snapshot: PlacementSnapshot) -> bool:
    """Whether the next one's turn may come without any model changing: when others on this machine give memory back."""
    head = next_in_turn(snapshot, _eviction_candidates(snapshot))
    return head is not None and has_place(snapshot) and not has_space(snapshot, head.model)


def victims_for_load(snapshot: PlacementSnapshot, model: str) -> list[str]:
    """Idle models that nobody waits for and that must leave for one that is loaded by command; none, if in vain."""
    idle = _idle_candidates(snapshot)
    leaving = group_victims(snapshot, model, idle)
    if leaving is None:
        return []
    if not leaving and not has_place(snapshot):
        leaving = idle[:1]
    space = _victims_for_space(snapshot, model, idle, leaving)
    return [resident.name for resident in [*leaving, *space]]


def least_valuable_idle(snapshot: PlacementSnapshot, model: str) -> str | None:
    """The idle model that is least worth keeping, for one that had room by all accounts and ran out of memory."""
    idle = [one for one in _eviction_candidates(snapshot) if one.name != model]
    return min(idle, key=lambda one: _keep_value(snapshot, one)).name if idle else None


def _keep_value(snapshot: PlacementSnapshot, resident: Resident) -> tuple[float, float, str]:
    return resident.policy.priority, -_eviction_benefit(snapshot, resident), resident.name


def _refusals(snapshot: PlacementSnapshot) -> tuple[Refusal, ...]:
    """Memory is looked at once nobody leaves any more: what they had counts as taken until the system has it back."""
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
    """One more for the queue. Beside one of unknown size nobody knows what fits."""
    if snapshot.starts_held:
        return False
    loading = [snapshot.resident(entry.model) for entry in snapshot.queue if entry.claimed]
    is_unknown = snapshot.limit != UNBOUNDED and any(resident.space == NOTHING for resident in loading)
    return not loading or (not is_unknown and len(loading) < snapshot.rules.parallel_loads)


def _evictions(snapshot: PlacementSnapshot, model: str | None, victims: list[Resident]) -> tuple[Eviction, ...]:
    """`model`: whose turn it is, if that may load now."""
    excluded = group_victims(snapshot, model, victims) if model else []
    evictions = [Eviction(one.name, f"idle, and {model} does not run beside it") for one in excluded or ()]
    others = [one for one in victims if one not in (excluded or ())]
    chosen: list[Resident] = []
    if snapshot.models_max > 0:
        waiting = sum(1 for entry in snapshot.queue if not entry.claimed)
        chosen = others[: max(0, waiting - _free_places(snapshot) - len(evictions))]
    reason = f"idle, and {len(snapshot.queue)} queued for {snapshot.models_max} places"
    evictions += [Eviction(one.name, reason) for one in chosen]
    if model and excluded is not None:
        reason = f"idle, and {model} needs {snapshot.resident(model).space}"
        more = _victims_for_space(snapshot, model, victims, [*excluded, *chosen])
        evictions += [Eviction(one.name, reason) for one in more]
    return tuple(evictions)


def _preemptions(snapshot: PlacementSnapshot, model: str, victims: list[Resident]) -> tuple[Eviction, ...]:
    """For one that has waited too long; one after the other, and never in vain."""
    if _count(snapshot.residents, ModelState.STOPPING) or not snapshot.resident(model).state.is_down:
        return ()
    in_use = [one for one in snapshot.residents if one.state.is_ready and one.leases and not one.is_pinned]
    in_use.sort(key=lambda one: (one.policy.priority, one.ready_since, one.name))
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
    """Beside those who leave anyway."""
    staying = [resident for resident in victims if resident not in leaving]
    gone = total(resident.space for resident in leaving)
    stopping = total(resident.space for resident in snapshot.residents if resident.state is ModelState.STOPPING)
    left = snapshot.limit - (_used_space(snapshot, but=model) - gone - stopping)
    ranked = sorted(staying, key=lambda one: _keep_value(snapshot, one))
    candidates = [(resident, resident.space) for resident in ranked]
    return smallest_sufficient_set(candidates, left, lambda left: _lacking(snapshot, model, left)) or []


def _lacking(snapshot: PlacementSnapshot, model: str, left: Limit) -> Space:
    """What `model` would lack if it were loaded where so much is left."""
    return snapshot.resident(model).space_within(left).exceeding(left)


def _eviction_benefit(snapshot: PlacementSnapshot, resident: Resident) -> float:
    """How long nobody wanted it and how much it frees, for each second that it costs to have it back."""
    idle = max(0.0, snapshot.now - resident.last_used)
    return idle * resident.space.total / max(resident.load_seconds, 0.01)


def _used_space(snapshot: PlacementSnapshot, but: str) -> Space:
    """By all that run, and by those whose start is under way; all others."""
    starting = {entry.model for entry in snapshot.queue if entry.claimed}
    return total(
        resident.space
        for resident in snapshot.residents
        if resident.name != but and (resident.state.is_running or resident.name in starting)
    )


def _free_places(snapshot: PlacementSnapshot) -> int:
    """Places that are free or becoming so, less those that a claimed entry is about to take."""
    return (
        snapshot.models_max - _running(snapshot) + _count(snapshot.residents, ModelState.STOPPING) - _pending(snapshot)
    )


def _pending(snapshot: PlacementSnapshot) -> int:
    """Claimed, and without a process yet."""
    return sum(1 for entry in snapshot.queue if entry.claimed and snapshot.resident(entry.model).state.is_down)


def _eviction_candidates(snapshot: PlacementSnapshot) -> list[Resident]:
    return [resident for resident in _idle_candidates(snapshot) if not is_protected(snapshot, resident)]


def _idle_candidates(snapshot: PlacementSnapshot) -> list[Resident]:
    """Whom nobody uses or wants; the first to leave first."""
    wanted = {entry.model for entry in snapshot.queue}
    idle = (
        resident
        for resident in snapshot.residents
        if resident.state.is_ready and not resident.leases and not resident.is_pinned and resident.name not in wanted
    )
    return sorted(idle, key=lambda one: (one.policy.priority, one.last_used, one.name))


def _running(snapshot: PlacementSnapshot) -> int:
    return sum(1 for resident in snapshot.residents if resident.state.is_running)


def _count(residents: Iterable[Resident], state: ModelState) -> int:
    return sum(1 for resident in residents if resident.state is state)
