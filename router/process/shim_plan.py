"""What the router tells a keeper: the one argument of its command line, as JSON."""

from __future__ import annotations

import msgspec


class ShimPlan(msgspec.Struct, frozen=True):
    command: tuple[str, ...]
    stop_command: tuple[str, ...]
    endpoint: str
    owns_port: bool
    """The port was chosen for it, so nobody else has a right to listen there."""
    health: str
    load_timeout: float
    ask_every: float
    """Seconds between two questions whether it still answers; 0: none."""
    measures: bool
    """What it takes is unknown, and worth a look."""
