"""The rule that every attack must keep, and what breaks it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from .attack import Attack
from .probe import Gaps
from .stage import MOST_TEXT, Answer

MORE_MS = 250.0
"""By how much more than the honest request an attack may delay others."""
MORE_MB = 512.0
"""Memory of any process above the start."""
LEAVING_S = 1.0
"""When a client has disconnected, its work stops within this time."""
STILL_WORKS = 0.25
"""Share of one processor that the gateway may use after that; an idle one uses less than a hundredth."""


@dataclass(frozen=True)
class Measured:
    gaps: Gaps
    router_mb: float
    worker_mb: float
    answers: tuple[Answer, ...]
    seconds: float
    ended: tuple[int, ...] = ()
    was_killed: bool = False
    tracebacks: int = 0
    load_after_leaving: float = 0.0
    """Share of one processor that is used LEAVING_S after the clients have disconnected."""
    wrong: str = ""
    """What the attack's check has found."""


@dataclass(frozen=True)
class Limits:
    more_ms: float = MORE_MS
    more_mb: float = MORE_MB
    reasons: frozenset[int] = field(default=frozenset(range(400, 500)))
    """Statuses whose body must have a message."""


def broken(attack: Attack, seen: Measured, honest: Gaps, limits: Limits | None = None) -> list[str]:
    """Return how the attack broke the rule; an empty list if it did not."""
    limits = limits or Limits()
    faults = []
    if seen.was_killed:
        faults.append("took so much memory that this script killed the gateway")
    elif seen.ended:
        faults.append(f"{len(seen.ended)} processes ended")
    for name in ("same", "other", "health"):
        gap, allowed = getattr(seen.gaps, name) * 1000, getattr(honest, name) * 1000 + limits.more_ms
        if gap > allowed:
            faults.append(f"{name} waited {gap:.0f} ms, allowed are {allowed:.0f} ms")
    for name, mb in (("router", seen.router_mb), ("worker", seen.worker_mb)):
        if mb > limits.more_mb:
            faults.append(f"the {name} took {mb:.0f} MB more, allowed are {limits.more_mb:.0f} MB")
    unexpected = sorted({answer.status for answer in seen.answers} - attack.statuses)
    if unexpected:
        names = {-2: "too many processes", -1: "no answer in time", 0: "closed without an answer"}
        texts = [names.get(status, str(status)) for status in unexpected]
        faults.append(f"status {', '.join(texts)}, expected {', '.join(map(str, sorted(attack.statuses)))}")
    errors = [answer for answer in seen.answers if answer.status in limits.reasons and answer.text]
    if any(len(answer.text) >= MOST_TEXT for answer in errors):
        faults.append(f"an error of more than {MOST_TEXT // 1024} KB")
    elif any(not answer.message for answer in errors):
        faults.append("an error without a message")
    if seen.gaps.failures:
        faults.append(f"{seen.gaps.failures} requests of the neighbours failed ({seen.gaps.last_failure[:120]})")
    if seen.tracebacks:
        faults.append(f"{seen.tracebacks} tracebacks in the log")
    if seen.load_after_leaving > STILL_WORKS:
        faults.append(f"still works {LEAVING_S:.0f} s after its clients left ({seen.load_after_leaving:.0%} of a core)")
    if seen.wrong:
        faults.append(seen.wrong)
    return faults
