"""The HTTP client on the way to the workers: a pool of connections, and one second try where that is safe.

The proxy calls `ConnectionPool.send()` and reads the `WorkerResponse` as it comes. Knows nothing of models, leases or
clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable
from weakref import WeakSet

from .connection import Connection, ConnectionLost, Header, Unreachable, WorkerResponse

CONNECT_TIMEOUT_S = 10.0
"""A worker listens before it is leased; what cannot be reached at once will not be."""
BUSY_RETRY_S = 0.01
"""A unix socket with a full backlog refuses instead of queueing; the next try comes after this."""
IDLE_LIMIT_S = 60.0
"""Idle connections are not reused later than this; workers keep theirs open for 90 s, so they never close first."""
MAX_IDLE = 256
"""Idle connections kept per endpoint; more would only hold descriptors after a burst."""


class ConnectionPool:
    """Owns every connection to every worker."""

    def __init__(self, *, timeout: float | None) -> None:
        """`timeout`: seconds without a byte after which an answer is given up; None: never."""
        self._timeout = timeout
        self._idle: dict[str, list[Connection]] = {}
        self._all: WeakSet[Connection] = WeakSet()

    async def send(
        self, endpoint: str, method: str, target: str, headers: Iterable[Header], body: bytes
    ) -> WorkerResponse:
        """Returns when the answer's head is there. `endpoint`: path of a unix socket, or `host:port`.

        A reused connection may have been closed while the request was on its way; it is sent again once, on a new one.
        """
        head = _head(endpoint, method, target, headers, len(body))
        died: ConnectionLost | None = None
        connection = self._take_idle(endpoint)
        if connection is not None:
            try:
                return await connection.exchange(method, head, body)
            except ConnectionLost as error:
                if connection.answered:
                    raise
                died = error
        try:
            connection = await self._connect(endpoint)
        except Unreachable as error:
            raise died or error from None  # its process is gone, and may have died of this very request
        return await connection.exchange(method, head, body)

    def quiet_for(self, endpoint: str) -> float:
        """Seconds since a byte of any answer came from there."""
        return min((one.quiet_for for one in self._all if one.endpoint == endpoint), default=math.inf)

    def abort_all(self, why: str) -> None:
        """Ends every exchange that is under way."""
        for connection in tuple(self._all):
            connection.abort(why)

    def close(self) -> None:
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _take_idle(self, endpoint: str) -> Connection | None:
        connections = self._idle.get(endpoint)
        if not connections:
            return None
        oldest_usable = asyncio.get_running_loop().time() - IDLE_LIMIT_S
        while connections:
            connection = connections.pop()
            if connection.usable and connection.idle_since >= oldest_usable:
                return connection
            connection.close()
        return None

    def _put_back(self, connection: Connection) -> None:
        connections = self._idle.setdefault(connection.endpoint, [])
        if len(connections) < MAX_IDLE:
            connections.append(connection)
        else:
            connection.close()

    def _forget(self, connection: Connection) -> None:
        """An idle connection was closed by the other side."""
        connections = self._idle.get(connection.endpoint)
        if connections is not None:
            with contextlib.suppress(ValueError):
                connections.remove(connection)
            if not connections:
                del self._idle[connection.endpoint]

    async def _connect(self, endpoint: str) -> Connection:
        loop = asyncio.get_running_loop()

        def protocol() -> Connection:
            connection = Connection(endpoint, self._timeout, self._put_back, self._forget)
            self._all.add(connection)
            return connection

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                while True:
                    try:
                        if "/" in endpoint:
                            return (await loop.create_unix_connection(protocol, endpoint))[1]
                        host, _, port = endpoint.rpartition(":")
                        return (await loop.create_connection(protocol, host.strip("[]"), int(port)))[1]
                    except BlockingIOError:
                        await asyncio.sleep(BUSY_RETRY_S)
        except (OSError, TimeoutError) as error:
            raise Unreachable(str(error) or "connecting timed out") from None


def _head(endpoint: str, method: str, target: str, headers: Iterable[Header], body_length: int) -> bytes:
    host = "localhost" if "/" in endpoint else endpoint
    lines = [f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n".encode()]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if body_length or method not in ("GET", "HEAD", "DELETE"):
        lines.append(b"Content-Length: %d\r\n" % body_length)
    lines.append(b"\r\n")
    return b"".join(lines)
