"""Everything that can happen to the models, as frozen values; `reducer` handles one after the other.

Each event carries `now`, the time on the lifecycle's clock, so that the reducer reads no clock. `asker` is the
request or the command that waits for an answer: for a lease, or for its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_corral.common.base.worker_reports import WorkerReport

from ..models.download import Download, ReadSources
from ..models.model import Instance, Model
from ..models.queue import Asker, Command, LeaseRequest
from ..placement.device_split import Need
from ..process.launcher import RunningWorker
from .effects import Process, Timer

if TYPE_CHECKING:
    from llama_corral.presets.sources import Preset


@dataclass(frozen=True, slots=True)
class Event:
    now: float


# -- requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestArrived(Event):
    """A request asks for a lease on a model. Answer: the lease."""

    asker: LeaseRequest


@dataclass(frozen=True, slots=True)
class ClientLeft(Event):
    """The request or command was cancelled. A lease that was already granted is released."""

    asker: Asker


@dataclass(frozen=True, slots=True)
class LeaseReleased(Event):
    """A request has ended. `is_answered`: the response was complete, which shows that the model works."""

    asker: LeaseRequest
    is_answered: bool


@dataclass(frozen=True, slots=True)
class MemoryEstimated(Event):
    """The model's files were read. None: its memory is unknown before the first load."""

    model: Model
    need: Need | None


# -- workers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerStarted(Event):
    """The process exists. `kernel_oom_kills`: the kernel's count of killed processes until now."""

    process: Process
    worker: RunningWorker
    kernel_oom_kills: int = 0


@dataclass(frozen=True, slots=True)
class StartFailed(Event):
    """No process could be created."""

    process: Process
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReported(Event):
    process: Process
    report: WorkerReport


@dataclass(frozen=True, slots=True)
class WorkerExited(Event):
    """The process was reaped. `returncode`: negative for a signal."""

    process: Process
    returncode: int
    last_lines: tuple[str, ...] = ()
    kernel_oom_kills: int = 0


@dataclass(frozen=True, slots=True)
class WorkerHung(Event):
    instance: Instance
    reason: str


@dataclass(frozen=True, slots=True)
class TimerFired(Event):
    timer: Timer


# -- commands ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServingStarted(Event):
    """The router has started; models to keep warm may load."""


@dataclass(frozen=True, slots=True)
class LoadRequested(Event):
    """A command loads a model. Answered when its worker has started."""

    asker: Command
    model: str


@dataclass(frozen=True, slots=True)
class UnloadRequested(Event):
    """A command stops a model or cancels a download. Answered at once, for a download at its end."""

    asker: Command
    model: str


@dataclass(frozen=True, slots=True)
class IdleUnloadRequested(Event):
    """A command unloads a model as soon as it is idle. Answered at once."""

    asker: Command
    model: str


@dataclass(frozen=True, slots=True)
class RemovalRequested(Event):
    """The files of a model will be removed. Answered when its worker or download has ended."""

    asker: Command
    model: str


@dataclass(frozen=True, slots=True)
class RemovalDone(Event):
    """The files of a model were removed."""

    model: str


@dataclass(frozen=True, slots=True)
class ReloadRequested(Event):
    """The sources were read again. Answered when the presets are applied."""

    asker: Command
    presets: Mapping[str, Preset]


@dataclass(frozen=True, slots=True)
class DownloadRequested(Event):
    """A command starts a download. Answered when its worker has started."""

    asker: Command
    preset: Preset
    read_sources: ReadSources


@dataclass(frozen=True, slots=True)
class DownloadCancelled(Event):
    """A command cancels a download. Answered at its end."""

    asker: Command
    model: str


@dataclass(frozen=True, slots=True)
class SourcesRead(Event):
    """The sources were read after a download. `failure`: why they could not be read; else empty."""

    download: Download
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ServingStopped(Event):
    """The router accepts no new requests; those that have a lease continue."""


@dataclass(frozen=True, slots=True)
class ClosingRequested(Event):
    """The router ends. The second one kills the workers. Answered when all processes have ended."""

    asker: Command
