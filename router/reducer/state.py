"""The whole state of the router's models; only the files of this folder change it.

`State` holds the records, and collects the effects of the current event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from ..memory.budget import MemoryBudget
from ..models.download import Download
from ..models.model import Instance, Model, ModelView, view_of
from ..models.queue import Command, Lease, LeaseRequest, RequestQueue
from ..models.registry import Catalog
from ..placement.snapshot import LoadCommand, PlacementRules, PlacementSnapshot
from .effects import Effect, EstimateMemory, Process, Publish
from .memory_accounting import MemoryAccounting

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset


class Load(Struct, eq=False):
    """An explicit load: by `POST /models/load`, or of a model marked load-on-startup."""

    asker: Command
    model: Model
    has_begun: bool = False
    """True when its delay is over and the model has no worker that is stopping."""
    waits_for_exit: bool = False
    """True while it waits for the end of the model's previous worker."""
    evicted: tuple[Instance, ...] | None = None
    """The instances that were evicted for it; None: it has not evicted yet."""
    instance: Instance | None = None
    """Its worker, once it starts."""


class Reload(Struct, eq=False):
    """A new set of presets, applied when the workers that it stops have ended."""

    asker: Command
    presets: Mapping[str, Preset]
    stopped: tuple[Instance, ...] | None = None
    """None: it waits for the reload before it."""


class Retry(Struct, frozen=True):
    """A second load after one that ran out of memory; it starts when `evicted` has ended."""

    model: Model
    evicted: Instance


class ExitWait(Struct, frozen=True):
    """A command that is answered when all these processes have ended."""

    asker: Command
    processes: tuple[Process, ...]


class State(Struct, eq=False):
    catalog: Catalog
    memory: MemoryAccounting
    models_max: int
    rules: PlacementRules
    load_delay: float = 0.0
    queue: RequestQueue = field(default_factory=RequestQueue)
    leases: dict[LeaseRequest, Lease] = field(default_factory=dict)
    """The leases that are held."""
    estimates: dict[Model, list[LeaseRequest]] = field(default_factory=dict)
    """Models whose memory is being estimated, and the requests that wait for this."""
    loads: list[Load] = field(default_factory=list)
    """In order of arrival."""
    warming: Model | None = None
    """The model that is about to be loaded without a request; its memory is estimated first."""
    to_admit_again: list[LeaseRequest] = field(default_factory=list)
    """Requests that waited for a model that was removed, and whose name another model has now."""
    retries: list[Retry] = field(default_factory=list)
    reloads: list[Reload] = field(default_factory=list)
    """The first one is in progress: no model starts until it is done."""
    downloads: dict[str, Download] = field(default_factory=dict)
    """Those whose process runs, and those that wait for one, in order of arrival."""
    exit_waits: list[ExitWait] = field(default_factory=list)
    is_refusing: bool = False
    """True when the router accepts no new requests, and decides nothing any more."""
    is_closing: bool = False
    review_at: float | None = None
    """Time for which the review timer is set."""
    effects: list[Effect] = field(default_factory=list)
    """Effects of the current event."""

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def publish(self, model: str, event: str, data: dict[str, Any] | None = None) -> None:
        """Publish an event of a model, and the same for its variants."""
        for name in (model, *self.catalog.variants_of(model)):
            self.emit(Publish(name, event, data))

    def estimate(self, model: Model) -> list[LeaseRequest]:
        """Begin to estimate a model's memory, unless this is in progress; return the requests that wait for it."""
        if model not in self.estimates:
            self.estimates[model] = []
            self.emit(EstimateMemory(model, model.preset))
        return self.estimates[model]

    @property
    def undecided_loads(self) -> list[Load]:
        """The explicit loads that placement may decide on: their model's memory is estimated."""
        return [
            load for load in self.loads if load.has_begun and load.instance is None and load.model not in self.estimates
        ]

    def outdated_in_queue(self) -> list[Model]:
        """Return the models that wait for a start, and whose memory is to be estimated again before it."""
        waiting = [self.catalog.find(entry.model) for entry in self.queue.entries if not entry.claimed]
        return [model for model in waiting if model is not None and model.is_need_outdated and model.state.is_down]

    def snapshot(self, now: float) -> PlacementSnapshot:
        loads = tuple(
            LoadCommand(load.model.name, load.evicted is None, any(not one.is_gone for one in load.evicted or ()))
            for load in self.undecided_loads
        )
        outdated = {model.name for model in self.outdated_in_queue()}
        entries = tuple(entry for entry in self.queue.entries if entry.model not in outdated)
        return self.memory.snapshot(self.catalog, entries, loads, self.models_max, now, starts_held=bool(self.reloads))

    def running(self, instance: Instance) -> Model | None:
        """Return the model that `instance` runs; None if the instance has ended."""
        model = self.catalog.find(instance.name)
        return model if model is not None and model.instance is instance else None

    def view(self, name: str, now: float) -> ModelView | None:
        """Return what may be seen of a model or a variant; None if there is none."""
        model, variant = self.catalog.find(name), self.catalog.variant(name)
        return None if model is None else view_of(model, self.queue.count(model.name), now, variant)

    def __repr__(self) -> str:
        running = sum(model.instance is not None for model in self.catalog)
        most = self.models_max or "any number"
        return (
            f"<State {len(self.catalog.names())} models, {running} of at most {most} running, "
            f"{len(self.leases)} leases, {self.queue.count_all()} waiting, {len(self.loads)} explicit loads, "
            f"{len(self.reloads)} reloads, {len(self.downloads)} downloads"
            f"{', refusing' if self.is_refusing else ''}{', closing' if self.is_closing else ''}>"
        )


def initial_state(
    presets: Mapping[str, Preset],
    command: tuple[str, ...],
    memory_budget: MemoryBudget,
    rules: PlacementRules,
    *,
    models_max: int,
    load_delay: float = 0.0,
) -> State:
    """Return the state in which no model runs. `command`: the start of a worker's command line, for display."""
    return State(Catalog(presets, command), MemoryAccounting(memory_budget, rules), models_max, rules, load_delay)


def describe(state: State, now: float) -> str:
    """Return the whole state as text, for the log."""
    estimates = {model.name: len(requests) for model, requests in state.estimates.items()}
    review = "none" if state.review_at is None else f"in {state.review_at - now:.1f} s"
    return "\n".join(
        [
            repr(state),
            *(repr(model) for model in state.catalog),
            repr(state.queue),
            state.memory.describe(state.catalog, now),
            f"estimates: {estimates}, next review: {review}",
            *map(repr, state.loads),
            *map(repr, state.retries),
            *(f"reload {'in progress' if one.stopped is not None else 'waiting'}" for one in state.reloads),
            *map(repr, state.downloads.values()),
            *map(repr, state.exit_waits),
        ]
    )
