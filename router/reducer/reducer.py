"""The one place where all events come in: `Reducer.handle` changes the state and returns the effects of an event.

It is synchronous and deterministic: it reads no clock, starts no process and awaits nothing. `Intake` handles one event
after the other and has the effects carried out; what comes of them are further events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from llama_corral.common.base.errors import ApiError

from ..models.download import Download
from ..models.model import Instance, Model
from ..models.queue import Command
from . import commands, downloads, events, reloads, requests, workers
from .effects import Effect, Effects, Refuse, TimerKind
from .events import Event, TimerFired
from .sequence import follow_up
from .state import State

Handler = Callable[[State, Any], None]


def on_timer(state: State, event: TimerFired) -> None:
    """Do what a timer was set for; for a review only what follows every event."""
    owner = event.timer.owner
    if event.timer.kind is TimerKind.REVIEW:
        state.review_at = None
    elif isinstance(owner, Instance):
        workers.on_stop_timeout(state, owner)
    elif isinstance(owner, Command):
        commands.on_load_delay(state, owner)
    elif isinstance(owner, Model):
        workers.start_claimed(state, owner, event.now)


HANDLERS: dict[type[Event], Handler] = {
    events.RequestArrived: requests.on_arrived,
    events.MemoryEstimated: requests.on_estimated,
    events.LeaseReleased: requests.on_released,
    events.ProgramAnswered: requests.on_answered,
    events.ClientLeft: requests.on_left,
    events.WorkerStarted: workers.on_started,
    events.StartFailed: workers.on_start_failed,
    events.WorkerReported: workers.on_reported,
    events.WorkerHung: workers.on_hung,
    events.WorkerExited: workers.on_exited,
    events.TimerFired: on_timer,
    events.LoadRequested: commands.on_load,
    events.UnloadRequested: commands.on_unload,
    events.IdleUnloadRequested: commands.on_idle_unload,
    events.ReloadRequested: reloads.on_requested,
    events.DownloadRequested: downloads.on_requested,
    events.DownloadCancelled: downloads.on_cancelled,
    events.SourcesRead: downloads.on_sources_read,
    events.RemovalRequested: commands.on_removal,
    events.RemovalDone: commands.on_removed,
    events.ServingStarted: commands.on_serving,
    events.ServingStopped: commands.on_stop_serving,
    events.ClosingRequested: commands.on_closing,
}
"""The handler of each event."""

DOWNLOAD_HANDLERS: dict[type[Event], Handler] = {
    events.WorkerStarted: downloads.on_started,
    events.StartFailed: downloads.on_start_failed,
    events.WorkerReported: downloads.on_reported,
    events.WorkerExited: downloads.on_exited,
}
"""The handlers of the events of a process that downloads."""


class Reducer:
    """The only writer of a state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def handle(self, event: Event) -> list[Effect]:
        """Change the state as the event demands, do what follows every event, and return the effects in order."""
        state = self.state
        is_download = isinstance(getattr(event, "process", None), Download)
        handler = (DOWNLOAD_HANDLERS if is_download else HANDLERS)[type(event)]
        try:
            handler(state, event)
        except ApiError as error:
            state.emit(Refuse(event.asker, error))  # type: ignore[attr-defined]
        follow_up(state, event.now)
        effects, state.effects = state.effects, []
        return effects


class Intake:
    """Handles events in order: an event that comes while another is handled waits for its effects."""

    def __init__(self, reducer: Reducer, effects: Effects) -> None:
        self._reducer = reducer
        self._effects = effects
        self._waiting: deque[Event] = deque()
        self._is_busy = False

    def put(self, event: Event) -> None:
        self._waiting.append(event)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._waiting:
                for effect in self._reducer.handle(self._waiting.popleft()):
                    self._effects.carry_out(effect)
        finally:
            self._is_busy = False


def event_table() -> str:
    """Return the events and their handlers as a table of README.md."""
    lines = ["| event | handler | what happens |", "|---|---|---|"]
    for table in (HANDLERS, DOWNLOAD_HANDLERS):
        for event, handler in table.items():
            file = handler.__module__.rpartition(".")[2]
            what = (handler.__doc__ or "").partition("\n")[0]
            lines.append(f"| {event.__name__} | `{file}.{handler.__name__}` | {what} |")
    return "\n".join(lines)
