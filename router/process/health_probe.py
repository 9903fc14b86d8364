"""Check with GET requests if an external program is alive, one request at a time, without blocking.

`external_shim` uses it once its program is ready. Any answer counts as alive, also an error status.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

import psutil
from llama_corral.common.base.worker_reports import SignOfLife

_PIECE = 4096


class HealthProbe:
    def __init__(self, address: tuple[str, int], path: str, interval: float) -> None:
        """`interval`: seconds between two requests. Raises OSError if no process listens on `address`."""
        with socket.create_connection(address, 2.0) as found:
            self._peer = (found.family, found.getpeername())
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self._request = f"GET {path} HTTP/1.1\r\nHost: {host}:{address[1]}\r\nConnection: close\r\n\r\n".encode()
        self._failure = f"GET {path} was not answered"
        self._interval = interval
        self._due = time.monotonic()
        self._answers = 0
        self._is_open = self._is_sent = False
        """`_is_open`: True if a request has no answer yet. `_is_sent`: True if it was sent."""
        self._socket: socket.socket | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds until the next request."""
        return max(0.0, self._due - time.monotonic())

    @property
    def descriptors(self) -> tuple[list[int], list[int]]:
        """Descriptors for `select` to wait for: to be readable, to be writable."""
        if self._socket is None:
            return [], []
        mine = [self._socket.fileno()]
        return (mine, []) if self._is_sent else ([], mine)

    def advance(self) -> SignOfLife | None:
        """Send and read without blocking. When the next request is due, start it and return a sign of life."""
        self._send()
        self._read()
        if self.seconds_left:
            return None
        sign = SignOfLife(self._is_open, self._answers, _processor_seconds(), self._failure)
        self._due = time.monotonic() + self._interval
        self._ask()
        return sign

    def _ask(self) -> None:
        self.close()
        self._is_open, self._is_sent = True, False
        family, peer = self._peer
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            self._socket.connect(peer)
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _send(self) -> None:
        if self._socket is None or self._is_sent or not select.select([], [self._socket], [], 0)[1]:
            return
        try:
            self._socket.send(self._request)
            self._is_sent = True
        except OSError:
            self.close()

    def _read(self) -> None:
        """Read to the end of the answer, so that the program can finish sending it."""
        while self._socket is not None and self._is_sent:
            try:
                data = self._socket.recv(_PIECE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
            elif self._is_open:
                self._is_open = False
                self._answers += 1

    def close(self) -> None:
        """Abandon the current request."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _processor_seconds() -> float:
    """Return the CPU seconds of all descendants of this process."""
    total = 0.0
    for child in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            used = child.cpu_times()
            total += used.user + used.system
    return total
