"""The limit of open files under a real router: idle connections, and the limit of an external program."""

from __future__ import annotations

import contextlib
import resource
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
from programs import Program, complete

Start = Callable[..., Program]
FAKE_BACKEND = str(Path(__file__).resolve().parents[1] / "support" / "fake_backend.py")
N_IDLE, AT_ONCE = 400, 20
HEAD_BEGINS = (b"", b"GET /hea", b"POST /models/load HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")


def test_a_server_without_free_descriptors_still_serves_new_clients(start_gateway: Start) -> None:
    gateway = start_gateway()
    process = psutil.Process(gateway.pid)
    limit = process.num_fds() + 200
    process.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
    address = ("127.0.0.1", int(gateway.address))
    with contextlib.ExitStack() as stack:
        for begin in HEAD_BEGINS:
            for n in range(N_IDLE):
                with contextlib.suppress(ConnectionError):
                    stack.enter_context(socket.create_connection(address)).sendall(begin)
                if n % AT_ONCE:
                    continue
                with socket.create_connection(address, timeout=20) as new:
                    new.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert new.recv(15) == b"HTTP/1.1 200 OK"
    assert gateway.log_text.count("open files (ulimit -n) are in use") == 1
    assert "Traceback" not in gateway.log_text


def test_an_external_program_has_the_limit_that_the_router_was_started_with(start_gateway: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    own = min(soft, hard) - 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (own, hard))
    try:
        command = shlex.join([sys.executable, FAKE_BACKEND, "${PORT}"])
        gateway = start_gateway(presets=f"[b]\ncmd = {command}\n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert psutil.Process(gateway.pid).rlimit(psutil.RLIMIT_NOFILE)[0] == hard
    complete(gateway, "b")
    (program,) = (one for one in gateway.family() if FAKE_BACKEND in one.cmdline() and one.pid != gateway.pid)
    assert program.rlimit(psutil.RLIMIT_NOFILE)[0] == own
