"""The input of all placement decisions: models, the queue and the limits at one moment, as frozen values.

Made by `memory_accounting`, read by `placement` and the other modules of this folder. Independent of clocks, processes
and requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_corral.presets.policy import DEFAULT_POLICY, ModelPolicy
from msgspec import Struct

from .device_split import Need
from .memory_amounts import NOTHING, UNBOUNDED, Limit, Space
from .states import ModelState

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings

PATIENCE_S = 60.0
"""`PlacementRules.max_wait`, in seconds, unless `--models-max-wait` is set."""


class Retention(Struct, frozen=True):
    """How long an unused model is kept."""

    ttl: float | None = None
    """Seconds; None: until another model needs its place."""
    pinned: bool = False
    """True if it is kept even when another model needs its place; only presets ask for that."""
    kept: bool = False
    """True if it is evicted only when evicting others is not sufficient; a request may ask for that."""

    @classmethod
    def of_keep_alive(cls, seconds: float | None) -> Retention | None:
        """Return what a request's `keep_alive` asks for. Negative: forever, but no request may pin a model."""
        if seconds is None:
            return None
        return cls(kept=True) if seconds < 0 else cls(ttl=seconds)


class Resident(Struct, frozen=True):
    """One model as placement sees it."""

    name: str
    state: ModelState
    leases: int
    last_used: float
    idle_since: float = 0.0
    """Time at which its last use ended."""
    retention: Retention = Retention()
    space: Space = NOTHING
    """Memory that it uses; while it is down, what it would use if it were loaded now."""
    need: Need | None = None
    """The need from which `space` is calculated; None: the space does not depend on free memory."""
    load_seconds: float = 1.0
    """Cost of loading it again after an eviction."""
    policy: ModelPolicy = DEFAULT_POLICY
    ready_since: float = 0.0
    warm_from: float | None = None
    """Time from which it may be loaded without a request; None: never."""

    expected: Space | None = None
    """Its memory as messages show it: on devices without other models; None: unknown."""

    def space_within(self, left: Limit) -> Space:
        """Return the memory that it would use if it were loaded with `left` free."""
        return self.space if self.need is None else self.need.placed_within(left)

    @property
    def is_pinned(self) -> bool:
        return self.retention.pinned and self.state.is_running and self.state is not ModelState.STOPPING

    @property
    def expires_at(self) -> float | None:
        """Time at which it is unloaded if it is not used before; None: never."""
        if self.retention.pinned or self.retention.ttl is None or self.leases or not self.state.is_ready:
            return None
        return self.idle_since + self.retention.ttl


class QueueEntry(Struct, frozen=True):
    """One queued model.

    `claimed`: its start is in progress, and it must not be evicted before its waiters are served.
    """

    model: str
    claimed: bool
    since: float = 0.0
    """Arrival time of its first waiter."""


class LoadCommand(Struct, frozen=True):
    """An explicit load, by `POST /models/load` or at the start."""

    model: str
    may_evict: bool = True
    """False once models were evicted for it: it evicts only once."""
    is_waiting: bool = False
    """True until these have ended."""


class PlacementRules(Struct, frozen=True):
    """The rules for all models, from the router's options."""

    max_wait: float = PATIENCE_S
    """Seconds for which priorities and minimum stays of other models may make an entry wait."""
    parallel_loads: int = 1
    preempts: bool = False
    """True if busy models are pre-empted for an entry that has waited for `max_wait`."""
    max_queue: int = 0
    """Most requests that may wait, for all models together; 0: no limit."""


class PlacementSnapshot(Struct, frozen=True):
    residents: tuple[Resident, ...]
    queue: tuple[QueueEntry, ...]
    """In order of arrival."""
    models_max: int
    starts_held: bool = False
    """True during a reload: nothing may start before it ends."""
    limit: Limit = UNBOUNDED
    now: float = 0.0
    """The current time, on the clock of `last_used`."""
    is_settling: bool = False
    """True if a worker has just ended and its memory may not be free yet, or if one loads and has not allocated all of
    its memory: no model is refused for lack of memory then."""
    rules: PlacementRules = PlacementRules()
    loads: tuple[LoadCommand, ...] = ()
    """In order of arrival."""

    def resident(self, name: str) -> Resident:
        return next(resident for resident in self.residents if resident.name == name)


DEFAULT_RULES = PlacementRules()


def rules_of(settings: Settings) -> PlacementRules:
    return PlacementRules(
        max_wait=settings.router.models_max_wait or PATIENCE_S,
        parallel_loads=settings.router.models_parallel_loads,
        preempts=settings.router.models_max_wait > 0,
        max_queue=settings.router.models_queue,
    )
