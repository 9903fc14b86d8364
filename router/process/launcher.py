"""What the router knows of a worker process, and how one is asked for; carried out by `spawn` and `zygote`.

`lifecycle` sees only the two protocols here, so tests hand it workers that are no processes. Calls never block and
never wait: what happens later arrives through the two callbacks, on the event loop, reports first and the exit last,
exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llama_corral.common.base.worker_reports import WorkerReport

if TYPE_CHECKING:
    from llama_corral.presets.backends import Backend


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One process to start. A worker's `arguments` lack what the launcher adds: `--host` with the socket's path."""

    name: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment inherited from the router."""
    backend: Backend | None = None
    """Another program, and its whole command line is `arguments`."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    on_report: Callable[[WorkerReport], None]
    on_exit: Callable[[int], None]
    """With the return code; negative: the signal that ended it."""


class Worker(Protocol):
    """A started process. After its exit `stop` and `kill` do nothing."""

    @property
    def pid(self) -> int | None:
        """None until the process exists."""

    @property
    def endpoint(self) -> str:
        """Path of the unix socket it serves HTTP on, or `host:port` of another program."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The whole command line."""

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The end of its log."""

    def stop(self) -> None:
        """Ask it to finish and exit."""

    def kill(self) -> None:
        """SIGKILL to it and to all it started."""


class Launcher(Protocol):
    @property
    def command(self) -> tuple[str, ...]:
        """The program and its first arguments, for show."""

    def launch(self, spec: LaunchSpec, callbacks: Callbacks) -> Worker:
        """Raises OSError when no process can be made."""

    def start(self) -> None:
        """Warm up in the background."""

    async def close(self) -> None:
        """After the last exit: give back all that launching needed."""
