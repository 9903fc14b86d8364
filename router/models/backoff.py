"""How often a model's worker failed in a row, and how long it is left alone for that. Pure; kept by `lifecycle`.

The next request after a first failure tries at once. From the second on there is a pause that doubles each time, in
which requests are refused at once; after it a single attempt decides for all who wait. A request that was answered, a
changed preset or a load by command begins anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama_corral.common.base.errors import ModelBackingOff

MIN_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
"""Long enough not to burn the machine's time, short enough that what was mended is found without a person's help."""
RESET_AFTER_S = 60.0
"""A worker that was ready for so long did not fail because it cannot run."""


@dataclass(frozen=True, slots=True)
class FailureBackoff:
    count: int = 0
    paused_until: float = 0.0
    """On the lifecycle's clock: no attempt before."""

    def after_failure(self, now: float, ready_for: float | None) -> FailureBackoff:
        """One more. `ready_for`: seconds that the worker was ready without a request; None: it never was."""
        is_new = ready_for is not None and ready_for >= RESET_AFTER_S
        count = 1 if is_new else self.count + 1
        return FailureBackoff(count, now + pause_after(count))

    def pause(self, now: float) -> float:
        return max(0.0, self.paused_until - now)

    def refusal(self, name: str, why: str, now: float) -> ModelBackingOff:
        seconds = math.ceil(self.pause(now))
        return ModelBackingOff(
            f"model name={name} failed {self.count} times in a row and is left alone for {seconds} s: {why}", seconds
        )


def pause_after(count: int) -> float:
    """Seconds."""
    if count < 2:
        return 0.0
    return float(min(MAX_PAUSE_S, MIN_PAUSE_S * 2 ** min(count - 2, 30)))


NO_FAILURES = FailureBackoff()
