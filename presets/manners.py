"""How the router is to treat a model: its preset's wishes, as one frozen value. No worker hears of it.

Made by `sources` from the preset-only keys; the router's deciders read it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import Settings


@dataclass(frozen=True, slots=True)
class Manners:
    priority: int = 0
    """Among those that wait the highest comes first, among those that may leave the lowest."""
    min_stay: float = 0.0
    """Seconds after its load in which nobody's wish for its place ends it."""


PLAIN = Manners()


def manners_of(own: Settings) -> Manners:
    """Out of a preset's own options."""
    return Manners(priority=own.priority, min_stay=own.min_stay)
