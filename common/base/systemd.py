"""Reports the state of a `Type=notify` service to systemd: ready, reloading, stopping. Elsewhere it does nothing."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping

log = logging.getLogger("corral.http")

NOTIFY_ENV = "NOTIFY_SOCKET"
READY, STOPPING = "READY=1", "STOPPING=1"


def reloading() -> str:
    """Return the message that a reload begins. `READY` must follow when the reload is done."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def notify(environ: Mapping[str, str], message: str) -> None:
    """Send the message to the socket in NOTIFY_SOCKET, if there is one. Failures are only logged."""
    path = environ.get(NOTIFY_ENV, "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), address)
    except OSError as error:
        log.warning("cannot send %s to the service manager: %s", message.partition("\n")[0], error)
