"""A model's states as the router sees them, and the only ways from one to the next.

Used by `lifecycle` alone; the table below is the truth, and the diagram in README.md is drawn from it.
"""

from __future__ import annotations

from enum import Enum


class ModelState(Enum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    """A worker was started, or wakes up: it answers 503."""
    LOADED = "loaded"
    SLEEPING = "sleeping"
    """The worker runs without its model; the next request wakes it."""
    STOPPING = "stopping"
    """Asked to leave, not reaped yet: takes no request, still fills its place. Clients see what it was before."""
    FAILED = "failed"
    """Down with an exit code other than 0. Clients see `unloaded` with `failed: true`."""
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    """The entry gives way to what the cache lists."""

    @property
    def is_running(self) -> bool:
        """A process exists, so it counts against models-max."""
        return self in _RUNNING

    @property
    def is_ready(self) -> bool:
        """Takes requests at once."""
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
"""From each state the states that may follow, with the event that leads there."""


class IllegalModelTransition(Exception):
    """Someone asked for a transition that the table does not have."""


def transition(state: ModelState, new: ModelState) -> ModelState:
    """The new state; raises IllegalModelTransition, and so changes nothing, when the table has no such way."""
    if new not in TRANSITIONS[state]:
        raise IllegalModelTransition(f"no way from {state.value} to {new.value}")
    return new


def diagram() -> str:
    """The table as a mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> unloaded", "    [*] --> downloading : POST /models"]
    for state, exits in TRANSITIONS.items():
        lines += [f"    {state.value} --> {new.value} : {event}" for new, event in exits.items()]
    lines.append("    downloading --> [*] : failed, cancelled")
    lines.append("    downloaded --> [*] : listed by the cache")
    return "\n".join(lines)
