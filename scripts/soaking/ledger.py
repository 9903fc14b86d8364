"""Records all requests, each of which must begin and end once, and all violations with a description.

Knows nothing of HTTP or processes.
"""

from __future__ import annotations

import asyncio
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
    """No answer, a truncated answer without an error, a refusal without a reason, or none before the deadline."""


class Ledger:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.began = time.monotonic()
        self.begun = 0
        self.endings: Counter[Ending] = Counter()
        self.reasons: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        """Counts of the disturbances."""
        self.hit = 0
        """Number of streams that ran on a worker when it was killed."""
        self.violations: list[str] = []
        self.slowest = 0.0
        self._open: dict[int, str] = {}
        self._flowing: dict[int, str] = {}
        self._listeners: list[asyncio.Future[str]] = []

    @property
    def open(self) -> int:
        return len(self._open)

    def begin(self, what: str) -> int:
        self.begun += 1
        self._open[self.begun] = what
        return self.begun

    def flow(self, number: int, model: str) -> None:
        """Record that the first bytes of a stream have arrived."""
        self._flowing[number] = model
        for listener in self._listeners:
            if not listener.done():
                listener.set_result(model)
        self._listeners.clear()

    def flowing(self, *names: str) -> int:
        """Return the number of running streams of the model with these names."""
        return sum(model in names for model in self._flowing.values())

    async def next_flow(self) -> str:
        """Wait for the next stream that begins and return its model."""
        listener: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._listeners.append(listener)
        return await listener

    def end(self, number: int, ending: Ending, note: str = "", seconds: float = 0.0) -> None:
        what = self._open.pop(number, None)
        self._flowing.pop(number, None)
        if what is None:
            self.violate(f"request {number} ended twice: {ending.value} {note}")
            return
        self.endings[ending] += 1
        self.slowest = max(self.slowest, seconds)
        if ending is Ending.LOST:
            self.violate(f"request {number} ({what}) failed after {seconds:.1f} s: {note}")
        elif note:
            self.reasons[note] += 1

    def violate(self, story: str) -> None:
        self.violations.append(f"{time.monotonic() - self.began:7.1f} s  {story}")

    def close(self) -> None:
        """Record a violation for each request that is still open."""
        for number, what in self._open.items():
            self.violate(f"request {number} ({what}) never ended")
        if self.begun != sum(self.endings.values()) + self.open:
            self.violate(f"{self.begun} requests began, but {sum(self.endings.values())} ended")
