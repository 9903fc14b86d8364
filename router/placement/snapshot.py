"""What the deciders see: models, the queue and the limits at one moment, as frozen values.

Made by `memory_accounting`, read by `placement` and its neighbours. Knows nothing of clocks, processes or requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_corral.presets.policy import DEFAULT_POLICY, ModelPolicy

from .device_split import Need
from .memory_amounts import NOTHING, UNBOUNDED, Limit, Space
from .states import ModelState

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings

PATIENCE_S = 60.0
"""For who says nothing about it: so long priorities and minimum stays may keep others waiting."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a model that nobody uses stays."""

    ttl: float | None = None
    """Seconds; None: until its place is needed."""
    pinned: bool = False
    """For ever, even when its place is needed."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One model as placement sees it."""

    name: str
    state: ModelState
    leases: int
    last_used: float
    idle_since: float = 0.0
    """When its last use ended."""
    retention: Retention = Retention()
    space: Space = NOTHING
    """What it takes; as long as it is down, what it would take if it were loaded now."""
    need: Need | None = None
    """What that is reckoned from; None: it is the same wherever it is loaded."""
    load_seconds: float = 1.0
    """What it costs to have it back."""
    policy: ModelPolicy = DEFAULT_POLICY
    ready_since: float = 0.0
    warm_from: float | None = None
    """From when on it may be loaded though nobody asks for it; None: never."""

    def space_within(self, left: Limit) -> Space:
        """If it were loaded where so much is left."""
        return self.space if self.need is None else self.need.placed_within(left)

    @property
    def is_pinned(self) -> bool:
        return self.retention.pinned and self.state.is_running and self.state is not ModelState.STOPPING

    @property
    def expires_at(self) -> float | None:
        """When it is to leave, if nobody uses it until then."""
        if self.retention.pinned or self.retention.ttl is None or self.leases or not self.state.is_ready:
            return None
        return self.idle_since + self.retention.ttl


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One queued model. `claimed`: its start is under way, and until its waiters are served it must not be evicted."""

    model: str
    claimed: bool
    since: float = 0.0
    """When the first of its waiters came."""


@dataclass(frozen=True, slots=True)
class PlacementRules:
    """For all models: what the router's own options say."""

    max_wait: float = PATIENCE_S
    """Seconds in which an entry respects priorities and minimum stays of others."""
    parallel_loads: int = 1
    preempts: bool = False
    """Who has waited for so long has models in use finish what they have and leave."""
    max_queue: int = 0
    """Requests that may wait for whatever models; 0: no bound."""


@dataclass(frozen=True, slots=True)
class PlacementSnapshot:
    residents: tuple[Resident, ...]
    queue: tuple[QueueEntry, ...]
    """In order of arrival."""
    models_max: int
    starts_held: bool = False
    """A reload is under way: nothing may start before it ends."""
    limit: Limit = UNBOUNDED
    now: float = 0.0
    """On the clock of `last_used`."""
    is_settling: bool = False
    """A worker has just gone, and its memory may not be back yet, or one loads and has not taken all of its own: nobody
    is refused for that."""
    rules: PlacementRules = PlacementRules()

    def resident(self, name: str) -> Resident:
        return next(resident for resident in self.residents if resident.name == name)


DEFAULT_RULES = PlacementRules()


def rules_of(settings: Settings) -> PlacementRules:
    return PlacementRules(
        max_wait=settings.models_max_wait or PATIENCE_S,
        parallel_loads=settings.models_parallel_loads,
        preempts=settings.models_max_wait > 0,
        max_queue=settings.models_queue,
    )
