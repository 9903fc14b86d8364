"""Everything that can happen to the models, as frozen values; `reducer` handles one after the other.

Each event carries `now`, the time on the lifecycle's clock, so that the reducer reads no clock. `asker` is the
request or the command that waits for an answer: for a lease, or for its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llama_corral.common.base.worker_reports import WorkerReport
from msgspec import Struct

from ..models.download import Download, ReadSources
from ..models.model import Instance, Model
from ..models.queue import Asker, Command, LeaseRequest
from ..placement.device_split import Need
from ..process.launcher import RunningWorker
from .effects import Process, Timer

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset


class Event(Struct, frozen=True):
    now: float


# -- requests ----------------------------------------------------------------------------------------------------------


class RequestArrived(Event, frozen=True):
    """A request asks for a lease on a model. Answer: the lease."""

    asker: LeaseRequest


class ClientLeft(Event, frozen=True):
    """The request or command was cancelled. A lease that was already granted is released."""

    asker: Asker


class LeaseReleased(Event, frozen=True):
    """A request has ended. `is_answered`: the response was complete, which shows that the model works."""

    asker: LeaseRequest
    is_answered: bool


class ProgramAnswered(Event, frozen=True):
    """An external program has answered a request with this HTTP status; 502: it closed the connection instead."""

    instance: Instance
    status: int


class MemoryEstimated(Event, frozen=True):
    """The files of `preset`, the model's when this began, were read. None: the memory is unknown before a load."""

    model: Model
    preset: Preset
    need: Need | None


# -- workers -----------------------------------------------------------------------------------------------------------


class WorkerStarted(Event, frozen=True):
    """The process exists. `kernel_oom_kills`: the kernel's count of killed processes until now."""

    process: Process
    worker: RunningWorker
    kernel_oom_kills: int = 0


class StartFailed(Event, frozen=True):
    """No process could be created."""

    process: Process
    reason: str


class WorkerReported(Event, frozen=True):
    process: Process
    report: WorkerReport


class WorkerExited(Event, frozen=True):
    """The process was reaped. `returncode`: negative for a signal."""

    process: Process
    returncode: int
    last_lines: tuple[str, ...] = ()
    kernel_oom_kills: int = 0


class WorkerHung(Event, frozen=True):
    instance: Instance
    reason: str


class TimerFired(Event, frozen=True):
    timer: Timer


# -- commands ----------------------------------------------------------------------------------------------------------


class ServingStarted(Event, frozen=True):
    """The router has started; models to keep warm may load."""


class LoadRequested(Event, frozen=True):
    """A command loads a model. Answered when its worker has started."""

    asker: Command
    model: str


class UnloadRequested(Event, frozen=True):
    """A command stops a model or cancels a download. Answered at once, for a download at its end."""

    asker: Command
    model: str


class IdleUnloadRequested(Event, frozen=True):
    """A command unloads a model as soon as it is idle. Answered at once."""

    asker: Command
    model: str


class RemovalRequested(Event, frozen=True):
    """The files of a model will be removed. Answered when its worker or download has ended."""

    asker: Command
    model: str


class RemovalDone(Event, frozen=True):
    """The files of a model were removed."""

    model: str


class ReloadRequested(Event, frozen=True):
    """The sources were read again. Answered when the presets are applied."""

    asker: Command
    presets: Mapping[str, Preset]


class DownloadRequested(Event, frozen=True):
    """A command starts a download. Answered when its worker has started."""

    asker: Command
    preset: Preset
    read_sources: ReadSources


class DownloadCancelled(Event, frozen=True):
    """A command cancels a download. Answered at its end."""

    asker: Command
    model: str


class SourcesRead(Event, frozen=True):
    """The sources were read after a download. `failure`: why they could not be read; else empty."""

    download: Download
    failure: str = ""


class ServingStopped(Event, frozen=True):
    """The router accepts no new requests; those that have a lease continue."""


class ClosingRequested(Event, frozen=True):
    """The router ends. The second one kills the workers. Answered when all processes have ended."""

    asker: Command
