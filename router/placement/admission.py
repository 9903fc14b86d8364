"""Decide whether a request for a model is granted, waits or is refused: pure functions of counts.

Called by `leases`. Only requests that use a model count against its `concurrency`; requests that only read its state
always pass.
"""

from __future__ import annotations

from llama_corral.common.base.errors import ApiError, QueueFull, TooManyRequests
from llama_corral.presets.policy import ModelPolicy
from msgspec import Struct


class Load(Struct, frozen=True):
    """Numbers of requests at one moment."""

    in_use: int
    """Requests that use the model."""
    waiting: int
    """Requests that wait for the model."""
    waiting_in_all: int
    """Requests that wait for any model."""


def free_capacity(policy: ModelPolicy, in_use: int) -> int | None:
    """Return how many more requests may use the model now; None: no limit."""
    return max(0, policy.concurrency - in_use) if policy.concurrency else None


def queue_refusal(name: str, policy: ModelPolicy, load: Load, max_queue: int) -> ApiError | None:
    """Return the error if one more request may not even wait. `max_queue`: for all models together; 0: no limit."""
    limit = policy.concurrency
    if limit and policy.concurrency_refuse and load.in_use + load.waiting >= limit:
        return TooManyRequests(f"model '{name}' has reached its limit of {limit} concurrent requests (concurrency)")
    if 0 < policy.max_queue <= load.waiting:
        return QueueFull(f"{load.waiting} requests already wait for model '{name}', which is its limit (max-queue)")
    if 0 < max_queue <= load.waiting_in_all:
        return QueueFull(f"{load.waiting_in_all} requests already wait for models, which is the limit (--models-queue)")
    return None
