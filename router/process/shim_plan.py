"""Define the instructions for a shim process: the single argument of its command line, as JSON."""

from __future__ import annotations

from msgspec import Struct


class ShimPlan(Struct, frozen=True):
    command: tuple[str, ...]
    stop_command: tuple[str, ...]
    endpoint: str
    owns_port: bool
    """True if the port was chosen for this program, so that no other process may listen there."""
    health: str
    load_timeout: float
    ask_every: float
    """Seconds between two health checks; 0: none."""
    measures: bool
    """True if the shim reports the program's memory, because the preset does not declare it."""
    open_files: int | None = None
    """The program's soft limit of open files; None: that of the shim."""
