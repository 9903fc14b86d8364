"""What a worker tells its router over the inherited control pipe: one JSON object a line, worker to router only.

The other direction needs no words: a line `exit` on the worker's stdin asks it to stop, EOF means the router died.
States and payloads carry llama-server's names, because the router repeats them in `/models` and `/models/sse`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

CONTROL_FD_ENV = "LLAMA_CORRAL_CONTROL_FD"
"""Number of the inherited pipe's descriptor; its presence tells a worker that it has a router."""

DOWNLOAD_ENV = "LLAMA_CORRAL_DOWNLOAD"
"""Set, to whatever: the worker only fetches the files of its model, and exits with 0 when all are there."""

HEARTBEAT_S = 2.0
"""Between two signs of life of a worker: seldom enough to cost nothing, often enough that some may be late."""

WorkerState = Literal["loading", "ready", "sleeping", "failed", "downloading", "alive"]


class SignOfLife(msgspec.Struct, frozen=True):
    """The payload of `alive`."""

    busy: bool = False
    """Some request has the engine, so `steps` should grow."""
    steps: int = 0
    cpu: float = 0.0
    """Seconds of processor time that the process has used."""
    complaint: str = ""
    """What is amiss if neither gets on, for a person; "" where it is requests."""


class DeviceUsage(msgspec.Struct, frozen=True):
    name: str
    """As llama.cpp has it: `CUDA0`."""
    size: int
    """Bytes."""
    address: str = ""
    """On the PCI bus, `0000:c1:00.0`; "": unknown."""


class MemoryUsage(msgspec.Struct, frozen=True):
    """What a model takes: bytes of the machine's memory, and of each device's."""

    host: int = 0
    devices: tuple[DeviceUsage, ...] | None = None
    """Those that it uses, and those that it could; None: nobody knows."""


class WorkerReport(msgspec.Struct, frozen=True):
    """One line of the pipe.

    loading: `{"stages": […], "current": "text_model", "value": 0.0…1.0}`, or `{}` on waking up.
    ready: the worker's `/v1/models` entry (id, aliases, tags, meta), or `{}` after waking up.
    downloading: `{"url": …, "downloaded": bytes, "total": bytes}`, of one file, by a worker that only downloads.
    alive: a `SignOfLife`, every `HEARTBEAT_S` seconds; changes no state. For another program its keeper gives it, more
    seldom: one that does not answer is busy, and an answer is a step.
    sleeping: `{}`. failed: `{"message": why}`, followed by the worker's exit.
    """

    state: WorkerState
    payload: dict[str, Any] = {}
    memory: MemoryUsage | None = None
    """With `ready`: what the model takes, if that is known."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(WorkerReport)


def encode(report: WorkerReport) -> bytes:
    return _encoder.encode(report) + b"\n"


def decode(line: bytes) -> WorkerReport:
    """Raises msgspec.DecodeError for a line that is no report."""
    return _decoder.decode(line)
