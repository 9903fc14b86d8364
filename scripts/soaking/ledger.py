"""The book of all requests: each begins once and ends once, and what must not happen is kept with its story.

Pure bookkeeping; knows nothing of HTTP or processes.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from enum import Enum


class Ending(Enum):
    SERVED = "served"
    REFUSED = "refused with a reason"
    TOLD = "stream ended with an error event"
    GONE = "client left"
    LOST = "lost"
    """No answer, an answer cut off without a word, a refusal without a reason, or none before the deadline."""


class Ledger:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.began = time.monotonic()
        self.begun = 0
        self.endings: Counter[Ending] = Counter()
        self.reasons: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        """What was done to the gateway beside requests."""
        self.violations: list[str] = []
        self.slowest = 0.0
        self._open: dict[int, str] = {}

    @property
    def open(self) -> int:
        return len(self._open)

    def begin(self, what: str) -> int:
        self.begun += 1
        self._open[self.begun] = what
        return self.begun

    def end(self, number: int, ending: Ending, note: str = "", seconds: float = 0.0) -> None:
        what = self._open.pop(number, None)
        if what is None:
            self.violate(f"request {number} ended twice: {ending.value} {note}")
            return
        self.endings[ending] += 1
        self.slowest = max(self.slowest, seconds)
        if ending is Ending.LOST:
            self.violate(f"request {number} ({what}) lost after {seconds:.1f} s: {note}")
        elif note:
            self.reasons[note] += 1

    def violate(self, story: str) -> None:
        self.violations.append(f"{time.monotonic() - self.began:7.1f} s  {story}")

    def close(self) -> None:
        """No request may be open any more."""
        for number, what in self._open.items():
            self.violate(f"request {number} ({what}) never ended")
        if self.begun != sum(self.endings.values()) + self.open:
            self.violate(f"{self.begun} requests began, and {sum(self.endings.values())} ended")
