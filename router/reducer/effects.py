"""What the reducer wants done outside of its state, as frozen values; an implementation of `Effects` does it.

An effect returns nothing. Its result, such as a started worker or an estimate, arrives as an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from llama_corral.common.base.errors import ApiError

from ..models.download import Download
from ..models.model import Instance, Model
from ..models.queue import Asker, Command, Lease, LeaseRequest
from ..process.launcher import LaunchSpec

if TYPE_CHECKING:
    from llama_corral.presets.sources import Preset

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


@dataclass(frozen=True, slots=True)
class Timer:
    kind: TimerKind
    owner: Model | Instance | Command | None = None


REVIEW = Timer(TimerKind.REVIEW)


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Create a process. Answer: WorkerStarted or StartFailed; then WorkerReported, and WorkerExited at the end."""

    process: Process
    spec: LaunchSpec


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Ask a worker to exit."""

    process: Process


@dataclass(frozen=True, slots=True)
class KillWorker:
    """Send SIGKILL to a worker's process group."""

    process: Process


@dataclass(frozen=True, slots=True)
class RecordHeartbeat:
    """Give the watchdog a heartbeat. Answer: WorkerHung if none follows, or no progress."""

    instance: Instance
    heartbeat: dict[str, Any]
    is_program: bool
    """True for another program: its shim knows of no requests, so the router's counts."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Give a request its lease."""

    asker: LeaseRequest
    lease: Lease


@dataclass(frozen=True, slots=True)
class Refuse:
    """Give a request or a command an error."""

    asker: Asker
    error: ApiError


@dataclass(frozen=True, slots=True)
class Finish:
    """Tell a command that it is done."""

    asker: Command


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Set or replace a timer, in seconds. Answer: TimerFired."""

    timer: Timer
    delay: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    timer: Timer


@dataclass(frozen=True, slots=True)
class EstimateMemory:
    """Read how much memory a model needs from its files, on another thread. Answer: MemoryEstimated."""

    model: Model
    preset: Preset


@dataclass(frozen=True, slots=True)
class ReadSourcesAgain:
    """Read and apply the sources after a download. Answer: SourcesRead."""

    download: Download


@dataclass(frozen=True, slots=True)
class Publish:
    """Send an event to the listeners of `/models/sse`."""

    model: str
    event: str
    data: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EndEvents:
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
