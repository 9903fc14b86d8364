"""How the router is to treat a model: its preset's wishes, as one frozen value. No worker hears of it.

Made by `sources` from the preset-only keys; the router's deciders read it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .options.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """Models that know of each other. Without a name: of none."""

    name: str = ""
    swap: bool = True
    """Its models exclude each other."""
    exclusive: bool = False
    """A model that is to be loaded has those of all other groups leave, and those of none."""
    persistent: bool = False
    """Its models stay when a model of an exclusive group is loaded."""


NO_GROUP = ModelGroup()


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    priority: int = 0
    """Among those that wait the highest comes first, among those that may leave the lowest."""
    min_stay: float = 0.0
    """Seconds after its load in which nobody's wish for its place ends it."""
    group: ModelGroup = NO_GROUP
    max_queue: int = 0
    """Requests that may wait for it; 0: no bound."""
    concurrency: int = 0
    """Requests that may use it at once; 0: as many as come."""
    concurrency_refuse: bool = False
    """More than these are refused instead of waiting."""
    keep_warm: bool = False
    """It is loaded though nobody asks for it, where there is room and nobody waits."""


DEFAULT_POLICY = ModelPolicy()


def policy_of(own: Settings, groups: Mapping[str, ModelGroup]) -> ModelPolicy:
    """Out of a preset's own options. A group that no section describes is what its members make of it by its name."""
    group = groups.get(own.group) or ModelGroup(own.group)
    return ModelPolicy(
        priority=own.priority,
        min_stay=own.min_stay,
        group=group,
        max_queue=own.max_queue,
        concurrency=own.concurrency,
        concurrency_refuse=own.concurrency_refuse,
        keep_warm=own.keep_warm,
    )
