"""What the reducer wants done outside of its state, as frozen values; an implementation of `Effects` does it.

An effect returns nothing. Its result, such as a started worker or an estimate, arrives as an event.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from llama_corral.common.base.errors import ApiError
from msgspec import Struct

from ..models.download import Download
from ..models.model import Instance, Model
from ..models.queue import Asker, Command, Lease, LeaseRequest
from ..process.launcher import LaunchSpec

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset

Process = Instance | Download
"""Whose process it is: a model's worker, or one that downloads."""


class TimerKind(Enum):
    REVIEW = "review"
    """Time alone changes what has to be done: a `ttl`, a back-off or a longest wait is over, or memory may be free."""
    START_DELAY = "start delay"
    """The pause before a start, for llama-server's tests; belongs to a model."""
    LOAD_DELAY = "load delay"
    """The same for an explicit load; belongs to the command."""
    STOP_TIMEOUT = "stop timeout"
    """The time that a worker has to exit; belongs to an instance."""


class Timer(Struct, frozen=True):
    kind: TimerKind
    owner: Model | Instance | Command | None = None


REVIEW = Timer(TimerKind.REVIEW)


class StartWorker(Struct, frozen=True):
    """Create a process. Answer: WorkerStarted or StartFailed; then WorkerReported, and WorkerExited at the end."""

    process: Process
    spec: LaunchSpec


class StopWorker(Struct, frozen=True):
    """Ask a worker to exit. It tells the clients of its running requests the reason."""

    process: Process
    reason: str


class KillWorker(Struct, frozen=True):
    """Send SIGKILL to a worker's process group."""

    process: Process


class RecordHeartbeat(Struct, frozen=True):
    """Give the watchdog a heartbeat. Answer: WorkerHung if none follows, or no progress."""

    instance: Instance
    heartbeat: dict[str, Any]
    is_program: bool
    """True for another program: its shim knows of no requests, so the router's counts."""


class Grant(Struct, frozen=True):
    """Give a request its lease."""

    asker: LeaseRequest
    lease: Lease


class Refuse(Struct, frozen=True):
    """Give a request or a command an error."""

    asker: Asker
    error: ApiError


class Finish(Struct, frozen=True):
    """Tell a command that it is done."""

    asker: Command


class SetTimer(Struct, frozen=True):
    """Set or replace a timer, in seconds. Answer: TimerFired."""

    timer: Timer
    delay: float


class CancelTimer(Struct, frozen=True):
    timer: Timer


class EstimateMemory(Struct, frozen=True):
    """Read how much memory a model needs from its files, on another thread. Answer: MemoryEstimated."""

    model: Model
    preset: Preset


class ReadSourcesAgain(Struct, frozen=True):
    """Read and apply the sources after a download. Answer: SourcesRead."""

    download: Download


class Publish(Struct, frozen=True):
    """Send an event to the listeners of `/models/sse`."""

    model: str
    event: str
    data: dict[str, Any] | None = None


class EndEvents(Struct, frozen=True):
    """End the streams of all listeners."""


Effect = (
    StartWorker
    | StopWorker
    | KillWorker
    | RecordHeartbeat
    | Grant
    | Refuse
    | Finish
    | SetTimer
    | CancelTimer
    | EstimateMemory
    | ReadSourcesAgain
    | Publish
    | EndEvents
)


class Effects(Protocol):
    """Carries out what the reducer wants. Does not wait: results arrive later, as events."""

    def carry_out(self, effect: Effect) -> None: ...
