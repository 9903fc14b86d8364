"""Binds the server's sockets: `--host` (comma list; an item that ends in .sock is a unix socket), `--port`, TLS.

`listen()` owns the sockets of one application from bind to close. Called by the mains of router and worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import Struct
from msgspec.structs import replace

from ..base.errors import ConfigError
from ..base.user_files import read_bytes_of
from .access_log import AccessLog
from .auth import HAS_KEYS
from .client_connection import ClientConnection

if TYPE_CHECKING:
    from ..base.common_settings import ListenSettings

log = logging.getLogger("corral.http")

BACKLOG = 4096
"""Length of the kernel's queue of new connections; llama-server's 128 refuses a burst of clients."""
KEEPALIVE_S = 90.0
"""Idle connections are kept longer than clients usually do (60 s at most), so that the client closes first."""
HANDSHAKE_S = 10.0
"""Seconds for the TLS handshake. Until its end a connection is not counted as one that may be closed."""
GRACE_S = 3.0
"""Seconds that running requests have to finish after a stop request, before they are aborted."""
HEAD_LIMIT = 64 * 1024
"""Maximum length of the request line and of a header field, in bytes."""
IDLE_PROBE_S, PROBE_INTERVAL_S, PROBES = 60, 15, 4
"""TCP keep-alive: a client that disappeared without a FIN is detected after two minutes, not two hours."""


class Listening(Struct, frozen=True):
    addresses: tuple[str, ...]
    """URLs for the user: `http://127.0.0.1:8080`, `unix:///run/x.sock`."""
    port: int | None
    """The TCP port, also if the system chose it because of `--port 0`."""
    stop_accepting: Callable[[], None] = lambda: None
    """Stops listening; open connections are kept."""


@contextlib.asynccontextmanager
async def listen(
    app: web.Application,
    settings: ListenSettings,
    *,
    grace: float = GRACE_S,
    access_log: type[AccessLog] = AccessLog,
) -> AsyncIterator[Listening]:
    """Serve inside the `async with` block; at its end stop accepting, wait `grace` seconds and abort what still runs.

    Raise ConfigError, with one line that names the address, if an address cannot be bound.
    """
    tls = _tls(settings)
    sockets = _bind_all(settings)
    socket_files = [sock.getsockname() for sock in sockets if _is_unix(sock)]
    # a disconnect of the client cancels its handler
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=grace)
    servers: list[asyncio.AbstractServer] = []
    try:
        await runner.setup()
        servers += [await _serve(runner, sock, tls, access_log) for sock in sockets]
        listening = replace(_describe(sockets, tls), stop_accepting=partial(_close, servers))
        for address in listening.addresses:
            log.info("listening on %s", address)
        _warn_if_open(sockets, has_keys=HAS_KEYS in app and app[HAS_KEYS]())
        yield listening
    finally:
        _close(servers)
        await runner.cleanup()
        for sock in sockets:
            sock.close()
        for path in socket_files:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _warn_if_open(sockets: list[socket.socket], *, has_keys: bool) -> None:
    """Warn if other machines can reach the server and no key is required."""
    names = [sock.getsockname()[0] for sock in sockets if not _is_unix(sock)]
    beyond = [name for name in names if not ipaddress.ip_address(name.partition("%")[0]).is_loopback]
    if beyond and not has_keys:
        log.warning(
            "listening on %s without an API key: every machine that reaches this address can use, load and unload the "
            "models (--api-key)",
            ", ".join(beyond),
        )


def _close(servers: list[asyncio.AbstractServer]) -> None:
    for server in servers:
        server.close()


_NOT_HTTP = (HttpProcessingError, web.RequestPayloadError)


def _server_log() -> logging.Logger:
    """Return a logger for aiohttp without stack traces for clients that send invalid HTTP."""
    server_log = logging.getLogger("corral.http.server")
    if not server_log.filters:
        server_log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], _NOT_HTTP)))
    return server_log


async def _serve(
    runner: web.AppRunner, sock: socket.socket, tls: ssl.SSLContext | None, access_log: type[AccessLog]
) -> asyncio.AbstractServer:
    loop = asyncio.get_running_loop()
    assert runner.server is not None
    factory = partial(
        ClientConnection,
        runner.server,
        loop=loop,
        access_log_class=access_log,
        logger=_server_log(),
        keepalive_timeout=KEEPALIVE_S,
        max_line_size=HEAD_LIMIT,
        max_field_size=HEAD_LIMIT,
        auto_decompress=False,  # `request_body` does it, within limits
    )
    if _is_unix(sock):
        return await loop.create_unix_server(factory, sock=sock, backlog=BACKLOG)
    handshake = HANDSHAKE_S if tls else None
    return await loop.create_server(factory, sock=sock, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=handshake)


def _is_unix(sock: socket.socket) -> bool:
    return hasattr(socket, "AF_UNIX") and sock.family == socket.AF_UNIX


def _describe(sockets: list[socket.socket], tls: ssl.SSLContext | None) -> Listening:
    scheme = "https" if tls else "http"
    addresses, port = [], None
    for sock in sockets:
        name = sock.getsockname()
        if _is_unix(sock):
            addresses.append(f"unix://{name}")
        else:
            port = name[1]
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            addresses.append(f"{scheme}://{host}:{port}")
    return Listening(tuple(addresses), port)


# -- binding ---------------------------------------------------------------------------------------------------------


def _bind_all(settings: ListenSettings) -> list[socket.socket]:
    hosts = settings.http.host
    n_tcp = sum(not host.endswith(".sock") for host in hosts)
    if settings.http.port == 0 and n_tcp > 1:
        raise ConfigError("--port 0 is not supported with several TCP addresses in --host")
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            if host.endswith(".sock"):
                sockets.append(_bind_unix(host))
            else:
                sockets += _bind_tcp(host, settings.http.port, reuse_port=settings.http.reuse_port, v6only=n_tcp > 1)
    except BaseException:
        for sock in sockets:
            if _is_unix(sock):
                os.unlink(sock.getsockname())
            sock.close()
        raise
    return sockets


def _bind_tcp(host: str, port: int, *, reuse_port: bool, v6only: bool) -> list[socket.socket]:
    """Bind every address of a host name, except those that this machine lacks (`localhost` without IPv6)."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: {error}") from None
    if port == 0:
        found = found[:1]  # only one port can be reported, and each address would get a different one
    sockets: list[socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(found):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            _prepare(sock, reuse_port=reuse_port, v6only=v6only or len(found) > 1)
            sock.bind(address)
            sock.listen(BACKLOG)  # with SO_REUSEADDR only listen() fails if the port is in use
        except OSError as error:
            sock.close()
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                continue
            for bound in sockets:
                bound.close()
            raise ConfigError(_why_not(host, port, error)) from None
        sockets.append(sock)
    if not sockets:
        raise ConfigError(f"--host {host}: no such address on this machine")
    return sockets


def _prepare(sock: socket.socket, *, reuse_port: bool, v6only: bool) -> None:
    """Set the socket's options; accepted connections inherit them."""
    sock.setblocking(False)
    if os.name == "posix":  # on Windows this would let two servers share a port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in (
        ("TCP_KEEPIDLE", IDLE_PROBE_S),
        ("TCP_KEEPINTVL", PROBE_INTERVAL_S),
        ("TCP_KEEPCNT", PROBES),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{host}:{port} is already in use: stop the other program or choose another --port"
    return f"cannot listen on {host}:{port}: {error.strerror or error}"


def _bind_unix(path: str) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError(f"--host {path}: this system has no unix sockets")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.setblocking(False)
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{path} is already in use by another program") from None
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
    return sock


def _remove_stale(path: str) -> None:
    """Delete a socket file that refuses connections: a killed server left it behind."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _tls(settings: ListenSettings) -> ssl.SSLContext | None:
    key, cert = settings.http.ssl_key_file, settings.http.ssl_cert_file
    if not key and not cert:
        return None
    if not key or not cert:
        raise ConfigError("TLS needs both --ssl-key-file and --ssl-cert-file")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)  # each file is opened once: it may be a pipe
    except (OSError, ValueError) as error:
        for option, path in (("--ssl-cert-file", cert), ("--ssl-key-file", key)):
            if not Path(path).is_fifo():
                read_bytes_of(option, path)  # OpenSSL does not say which of the files it cannot read
        raise ConfigError(f"--ssl-cert-file {cert}, --ssl-key-file {key}: {_why_not_loaded(error)}") from None
    return context


def _why_not_loaded(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if isinstance(error, ssl.SSLError) and (error.reason or "PEM lib") in ("PEM lib", "NO_START_LINE", "PEM_LIB"):
        return "one of them is not a PEM file of its kind"
    return str(error)
