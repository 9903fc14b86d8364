"""The messages that a worker sends to its router over the inherited control pipe: one JSON object per line.

In the other direction there is only the worker's stdin: the line `exit` requests a stop, EOF means the router died.
States and payloads use llama-server's names, because the router returns them in `/models` and `/models/sse`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

CONTROL_FD_ENV = "LLAMA_CORRAL_CONTROL_FD"
"""File descriptor number of the inherited pipe. If it is set, the worker has a router."""

DOWNLOAD_ENV = "LLAMA_CORRAL_DOWNLOAD"
"""If set to any value, the worker only downloads its model's files and exits with 0 when all are complete."""

HEARTBEAT_S = 2.0
"""Seconds between two `alive` reports of a worker: rare enough to be cheap, frequent enough that some may be late."""

WorkerState = Literal["loading", "ready", "sleeping", "failed", "downloading", "alive"]


class SignOfLife(Struct, frozen=True):
    """The payload of an `alive` report."""

    busy: bool = False
    """True if the engine works on a request, so `steps` should grow."""
    steps: int = 0
    cpu: float = 0.0
    """Seconds of CPU time that the process has used."""
    complaint: str = ""
    """Text that describes what is stuck if neither counter grows; "" if it is the requests."""


class DeviceUsage(Struct, frozen=True):
    name: str
    """llama.cpp's name, for example `CUDA0`."""
    size: int
    """Bytes."""
    address: str = ""
    """PCI address, for example `0000:c1:00.0`; "" if unknown."""


class MemoryUsage(Struct, frozen=True):
    """The memory that a model uses: bytes of host memory, and of each device's memory."""

    host: int = 0
    devices: tuple[DeviceUsage, ...] | None = None
    """The devices that the model uses and those that it could use; None if unknown."""


class WorkerReport(Struct, frozen=True):
    """One line of the pipe. The payload depends on the state:

    loading: `{"stages": […], "current": "text_model", "value": 0.0…1.0}`, or `{}` on waking up.
    ready: the worker's `/v1/models` entry (id, aliases, tags, meta), or `{}` after waking up.
    downloading: `{"url": …, "downloaded": bytes, "total": bytes}` of one file, from a worker that only downloads.
    alive: a `SignOfLife`, every `HEARTBEAT_S` seconds; does not change the state. For an external program its shim
    sends it, less often: a program that does not answer counts as busy, and each answer counts as one step.
    sleeping: `{}`. failed: `{"message": why}`, followed by the worker's exit.
    """

    state: WorkerState
    payload: dict[str, Any] = {}
    memory: MemoryUsage | None = None
    """Sent with `ready`: the memory that the model uses, if known."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(WorkerReport)


def encode(report: WorkerReport) -> bytes:
    return _encoder.encode(report) + b"\n"


def decode(line: bytes) -> WorkerReport:
    """Decode one line. Raise msgspec.DecodeError if it is not a report."""
    return _decoder.decode(line)
