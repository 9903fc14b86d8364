"""Count a model's failures in a row, and compute the back-off that follows. Pure; `reducer` stores the result.

After a first failure the next request starts a new attempt immediately. From the second failure on there is a pause
that doubles each time, in which requests are refused immediately. After it one attempt decides for all waiting
requests. A completed request, a changed preset or a load by `POST /models/load` resets the count.
"""

from __future__ import annotations

import math

from llama_corral.common.base.errors import ModelBackingOff
from msgspec import Struct

MIN_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
"""Long enough not to waste computing time, short enough that a fixed model is soon loaded without manual help."""
RESET_AFTER_S = 60.0
"""A worker that was ready for this time can run in principle, so its failure starts a new count."""


class FailureBackoff(Struct, frozen=True):
    count: int = 0
    paused_until: float = 0.0
    """Time on the lifecycle's clock before which no attempt is made."""

    def after_failure(self, now: float, ready_for: float | None) -> FailureBackoff:
        """Return the state after one more failure.

        `ready_for`: seconds for which the worker was ready without a request; None: it was never ready.
        """
        is_new = ready_for is not None and ready_for >= RESET_AFTER_S
        count = 1 if is_new else self.count + 1
        return FailureBackoff(count, now + pause_after(count))

    def pause(self, now: float) -> float:
        """Return the seconds until the next attempt."""
        return min(MAX_PAUSE_S, max(0.0, self.paused_until - now))  # the difference of two floats may exceed the pause

    def refusal(self, name: str, why: str, now: float) -> ModelBackingOff:
        seconds = math.ceil(self.pause(now))
        return ModelBackingOff(
            f"model name={name} failed {self.count} times in a row and is not loaded again for {seconds} s: {why}",
            seconds,
        )


def pause_after(count: int) -> float:
    """Return the pause after `count` failures in a row, in seconds."""
    if count < 2:
        return 0.0
    return float(min(MAX_PAUSE_S, MIN_PAUSE_S * 2 ** min(count - 2, 30)))


NO_FAILURES = FailureBackoff()
