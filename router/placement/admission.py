"""Whether a request for a model may go on, has to wait, or is one too many: pure decisions on counts.

Asked by `leases`. Only requests that use a model count against its `concurrency`; who merely looks at it passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama_corral.common.base.errors import ApiError, QueueFull, TooManyRequests
from llama_corral.presets.policy import Manners


@dataclass(frozen=True, slots=True)
class Crowd:
    """Requests at one moment."""

    in_use: int
    """That use the model."""
    waiting: int
    """For the model."""
    waiting_in_all: int
    """For whatever model."""


def free(manners: Manners, in_use: int) -> int | None:
    """How many more requests may use the model now; None: as many as come."""
    return max(0, manners.concurrency - in_use) if manners.concurrency else None


def refusal(name: str, manners: Manners, crowd: Crowd, max_queue: int) -> ApiError | None:
    """Why one more may not even wait. `max_queue`: for all models together; 0: no bound."""
    limit = manners.concurrency
    if limit and manners.concurrency_refuse and crowd.in_use + crowd.waiting >= limit:
        return TooManyRequests(f"model '{name}' takes {limit} requests at once (concurrency), and has as many")
    if 0 < manners.max_queue <= crowd.waiting:
        return QueueFull(f"{crowd.waiting} requests wait for model '{name}' already, which is its limit (max-queue)")
    if 0 < max_queue <= crowd.waiting_in_all:
        return QueueFull(
            f"{crowd.waiting_in_all} requests wait for models already, which is the limit (--models-queue)"
        )
    return None
