"""The messages between router and zygote over their socket: fork requests with three descriptors, and their results.

Requests are length-prefixed JSON, because descriptors are sent with a request's first byte; answers are one JSON
object per line.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

_LENGTH = struct.Struct("!I")
DESCRIPTORS = 3
"""Number of descriptors per request: the worker's stdin, its log (stdout and stderr), its control pipe."""


class ForkRequest(Struct, frozen=True):
    id: int
    name: str
    argv: list[str]
    environ: dict[str, str]


class ZygoteEvent(Struct, frozen=True):
    """ready: imports are done. unsafe: the zygote must not be forked, `message` says why.

    exited: the worker ended with `code`; a negative code is the number of the signal that killed it.
    """

    event: Literal["ready", "unsafe", "forked", "exited"]
    id: int = 0
    pid: int = 0
    code: int = 0
    message: str = ""


_encoder = msgspec.json.Encoder()
_fork_decoder = msgspec.json.Decoder(ForkRequest)
_event_decoder = msgspec.json.Decoder(ZygoteEvent)


def encode_fork(fork: ForkRequest) -> bytes:
    body = _encoder.encode(_converted(fork, lambda text: os.fsencode(text).decode("latin-1")))
    return _LENGTH.pack(len(body)) + body


def receive_fork(connection: socket.socket) -> tuple[ForkRequest, list[int]] | None:
    """Return the next request from a blocking socket, with its descriptors; None at the end of the stream."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, DESCRIPTORS)
    if not head:
        return None
    head += _exactly(connection, _LENGTH.size - len(head))
    body = _exactly(connection, _LENGTH.unpack(head)[0])
    return _converted(_fork_decoder.decode(body), lambda text: os.fsdecode(text.encode("latin-1"))), descriptors


def _converted(fork: ForkRequest, convert: Callable[[str], str]) -> ForkRequest:
    """Convert the texts, which JSON cannot always contain: paths and variables may be any bytes."""
    argv = [convert(word) for word in fork.argv]
    environ = {convert(key): convert(value) for key, value in fork.environ.items()}
    return ForkRequest(fork.id, convert(fork.name), argv, environ)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise ConnectionError("the router closed its socket within a request")
        data += chunk
    return bytes(data)


def encode_event(answer: ZygoteEvent) -> bytes:
    return _encoder.encode(answer) + b"\n"


def decode_event(line: bytes) -> ZygoteEvent:
    return _event_decoder.decode(line)
