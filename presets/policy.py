"""The scheduling options of a model, as one frozen value for the router. Workers do not get them.

Created by `sources` from the preset-only keys; the router's placement reads it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from .options.settings import Settings


class ModelGroup(Struct, frozen=True):
    """A group of models. An empty name means no group."""

    name: str = ""
    swap: bool = True
    """True if only one model of the group may be loaded at a time."""
    exclusive: bool = False
    """True if loading one of its models evicts the models of all other groups, and models without a group."""
    persistent: bool = False
    """True if its models are kept when a model of an exclusive group is loaded."""


NO_GROUP = ModelGroup()


class ModelPolicy(Struct, frozen=True):
    priority: int = 0
    """The highest waiting model is loaded first; the lowest idle model is evicted first."""
    min_stay: float = 0.0
    """Seconds after its load during which the model is not evicted for others."""
    group: ModelGroup = NO_GROUP
    max_queue: int = 0
    """Maximum number of requests that wait for the model; 0: no limit."""
    concurrency: int = 0
    """Maximum number of parallel requests to the model; 0: no limit."""
    concurrency_refuse: bool = False
    """True if requests beyond `concurrency` are refused instead of queued."""
    keep_warm: bool = False
    """True if the model is loaded without a request when there is room and no other model waits."""


DEFAULT_POLICY = ModelPolicy()


def policy_of(own: Settings, groups: Mapping[str, ModelGroup]) -> ModelPolicy:
    """Return the policy of a preset's own options. A group without a section in the file has the default rules."""
    group = groups.get(own.presets.group) or ModelGroup(own.presets.group)
    return ModelPolicy(
        priority=own.presets.priority,
        min_stay=own.presets.min_stay,
        group=group,
        max_queue=own.presets.max_queue,
        concurrency=own.presets.concurrency,
        concurrency_refuse=own.presets.concurrency_refuse,
        keep_warm=own.presets.keep_warm,
    )
