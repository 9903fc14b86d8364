"""Define the interface for starting and controlling a worker process. `spawn` and `zygote` implement it.

`lifecycle` sees only the protocols here, so tests can pass it workers that are not processes. Calls never block.
Later events arrive through the two callbacks, on the event loop: reports first, and the exit last, exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from llama_corral.common.base.worker_reports import WorkerReport
from msgspec import Struct, field

if TYPE_CHECKING:
    from llama_corral.presets.backends import Backend


class LaunchSpec(Struct, frozen=True):
    """One process to start. To a worker's `arguments` the launcher adds `--host` with the path of its socket."""

    name: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment inherited from the router."""
    backend: Backend | None = None
    """Set for an external program; then `arguments` is its whole command line."""


class Callbacks(Struct, frozen=True):
    on_report: Callable[[WorkerReport], None]
    on_exit: Callable[[int], None]
    """Called with the exit code; negative: the signal that ended the process."""


class RunningWorker(Protocol):
    """What a started process shows of itself."""

    @property
    def pid(self) -> int | None:
        """None until the process exists."""

    @property
    def endpoint(self) -> str:
        """Path of the unix socket on which it serves HTTP, or `host:port` of an external program."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The whole command line."""


class Worker(RunningWorker, Protocol):
    """A started process. After its exit `stop` and `kill` do nothing."""

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of its log."""

    def stop(self, reason: str = "") -> None:
        """Ask it to finish and exit. `reason`: for the clients of requests that do not finish."""

    def kill(self) -> None:
        """Send SIGKILL to it and to all processes that it started."""


class Launcher(Protocol):
    @property
    def command(self) -> tuple[str, ...]:
        """The program and its first arguments, for display."""

    def launch(self, spec: LaunchSpec, callbacks: Callbacks) -> Worker:
        """Start a worker. Raises OSError if no process can be created."""

    def start(self) -> None:
        """Warm up in the background."""

    async def close(self) -> None:
        """Release all resources. To be called after the last worker's exit."""
