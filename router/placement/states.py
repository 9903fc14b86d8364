"""The states of a model in the router, and all allowed transitions between them.

Only `reducer` changes states. The diagram in README.md is generated from the table below.
"""

from __future__ import annotations

from enum import Enum


class ModelState(Enum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    """A worker was started or wakes up; it answers 503."""
    LOADED = "loaded"
    SLEEPING = "sleeping"
    """The worker runs with its model unloaded; the next request wakes it."""
    STOPPING = "stopping"
    """The worker was asked to exit and is not reaped yet: it accepts no request but still counts against models-max.
    Clients see the state before."""
    FAILED = "failed"
    """Without a process after an exit code other than 0. Clients see `unloaded` with `failed: true`."""
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    """The entry is about to be replaced by the one that the cache lists."""

    @property
    def is_running(self) -> bool:
        """True if a process exists; it counts against models-max."""
        return self in _RUNNING

    @property
    def is_ready(self) -> bool:
        """True if the worker accepts requests."""
        return self in (ModelState.LOADED, ModelState.SLEEPING)

    @property
    def is_down(self) -> bool:
        return self in (ModelState.UNLOADED, ModelState.FAILED)


_RUNNING = frozenset({ModelState.LOADING, ModelState.LOADED, ModelState.SLEEPING, ModelState.STOPPING})

TRANSITIONS: dict[ModelState, dict[ModelState, str]] = {
    ModelState.UNLOADED: {ModelState.LOADING: "start"},
    ModelState.FAILED: {ModelState.LOADING: "start", ModelState.UNLOADED: "reload"},
    ModelState.LOADING: {
        ModelState.LOADED: "ready",
        ModelState.STOPPING: "unload (SIGKILL)",
        ModelState.UNLOADED: "exit 0",
        ModelState.FAILED: "exit ≠ 0",
    },
    ModelState.LOADED: {
        ModelState.SLEEPING: "idle",
        ModelState.STOPPING: "unload, evict",
        ModelState.UNLOADED: "exit 0",
        ModelState.FAILED: "exit ≠ 0",
    },
    ModelState.SLEEPING: {
        ModelState.LOADING: "wake",
        ModelState.LOADED: "awake",
        ModelState.STOPPING: "unload, evict",
        ModelState.UNLOADED: "exit 0",
        ModelState.FAILED: "exit ≠ 0",
    },
    ModelState.STOPPING: {ModelState.UNLOADED: "exit 0", ModelState.FAILED: "exit ≠ 0"},
    ModelState.DOWNLOADING: {ModelState.DOWNLOADED: "done"},
    ModelState.DOWNLOADED: {},
}
"""For each state the states that may follow, each with its event."""


class IllegalModelTransition(Exception):
    """The requested transition is not in the table."""


def transition(state: ModelState, new: ModelState) -> ModelState:
    """Return the new state. Raises IllegalModelTransition if the table does not have this transition."""
    if new not in TRANSITIONS[state]:
        raise IllegalModelTransition(f"no transition from {state.value} to {new.value}")
    return new


def diagram() -> str:
    """Return the table as a mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> unloaded", "    [*] --> downloading : POST /models"]
    for state, exits in TRANSITIONS.items():
        lines += [f"    {state.value} --> {new.value} : {event}" for new, event in exits.items()]
    lines.append("    downloading --> [*] : failed, cancelled")
    lines.append("    downloaded --> [*] : listed by the cache")
    return "\n".join(lines)
