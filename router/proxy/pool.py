"""Send requests to workers over a pool of HTTP connections, and retry once where that is safe.

The proxy calls `ConnectionPool.send()` and reads the `WorkerResponse` as a stream. The pool does not know models,
leases or clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable
from weakref import WeakSet

from .connection import Connection, ConnectionLost, Header, Unreachable, WorkerResponse

CONNECT_TIMEOUT_S = 10.0
"""A worker listens before it is leased, so a longer wait would not help."""
BUSY_RETRY_S = 0.01
"""Seconds until the next try. A unix socket with a full backlog refuses connections instead of queueing them."""
IDLE_LIMIT_S = 60.0
"""Seconds for which idle connections are reused. Workers keep them open for 90 s, so they never close first."""
MAX_IDLE = 256
"""Maximum idle connections per endpoint. More would only occupy descriptors after a burst."""


class ConnectionPool:
    """Owns every connection to every worker."""

    def __init__(self, *, timeout: float | None) -> None:
        """`timeout`: seconds without a byte after which an exchange is aborted; None: no limit."""
        self._timeout = timeout
        self._idle: dict[str, list[Connection]] = {}
        self._all: WeakSet[Connection] = WeakSet()

    def __repr__(self) -> str:
        idle = sum(map(len, self._idle.values()))
        endpoints = {connection.endpoint for connection in self._all}
        return f"<ConnectionPool {len(self._all)} connections to {len(endpoints)} workers, {idle} idle>"

    async def send(
        self, endpoint: str, method: str, target: str, headers: Iterable[Header], body: bytes
    ) -> WorkerResponse:
        """Send a request and return when the response's head has arrived. `endpoint`: unix socket path or `host:port`.

        A reused connection may have been closed while the request was sent. Then the request is sent once more on a new
        connection. Raises Unreachable and ConnectionLost.
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
            raise died or error from None  # the process has ended, possibly because of this request
        return await connection.exchange(method, head, body)

    def quiet_for(self, endpoint: str) -> float:
        """Return the seconds since a byte of any response arrived from `endpoint`; infinite if none did."""
        return min((one.quiet_for for one in self._all if one.endpoint == endpoint), default=math.inf)

    def abort_all(self, why: str) -> None:
        """Abort all current exchanges."""
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
        """Remove an idle connection that the worker closed."""
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
            raise Unreachable(str(error) or "the connection attempt timed out") from None


def _head(endpoint: str, method: str, target: str, headers: Iterable[Header], body_length: int) -> bytes:
    host = "localhost" if "/" in endpoint else endpoint
    lines = [f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n".encode()]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if body_length or method not in ("GET", "HEAD", "DELETE"):
        lines.append(b"Content-Length: %d\r\n" % body_length)
    lines.append(b"\r\n")
    return b"".join(lines)
