"""Whether a request for a model may go on, has to wait, or is one too many: pure decisions on counts.

Asked by `leases`. Only requests that use a model count against its `concurrency`; who merely looks at it passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama_corral.common.base.errors import ApiError, QueueFull, TooManyRequests
from llama_corral.presets.policy import ModelPolicy


@dataclass(frozen=True, slots=True)
class Load:
    """Requests at one moment."""

    in_use: int
    """That use the model."""
    waiting: int
    """For the model."""
    waiting_in_all: int
    """For whatever model."""


def free_capacity(policy: ModelPolicy, in_use: int) -> int | None:
    """How many more requests may use the model now; None: as many as come."""
    return max(0, policy.concurrency - in_use) if policy.concurrency else None


def queue_refusal(name: str, policy: ModelPolicy, load: Load, max_queue: int) -> ApiError | None:
    """Why one more may not even wait. `max_queue`: for all models together; 0: no bound."""
    limit = policy.concurrency
    if limit and policy.concurrency_refuse and load.in_use + load.waiting >= limit:
        return TooManyRequests(f"model '{name}' takes {limit} requests at once (concurrency), and has as many")
    if 0 < policy.max_queue <= load.waiting:
        return QueueFull(f"{load.waiting} requests wait for model '{name}' already, which is its limit (max-queue)")
    if 0 < max_queue <= load.waiting_in_all:
        return QueueFull(f"{load.waiting_in_all} requests wait for models already, which is the limit (--models-queue)")
    return None
