"""Starts the measured programs, waits until they are ready, and always stops them.

A program is defined by its argv only, so both sides get the same flags. Every server runs in a separate session, and
on Linux it is killed when the benchmark exits. A router stops its workers; those that it leaves are killed here.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from .client import Address, get

READY_S = 60.0  # a model of 100 M parameters loads in less than a second; a cold disk may need longer
STOP_S = 10.0  # as long as service managers usually wait before they kill
POLL_S = 0.002  # short compared with the measured start-up times
PR_SET_PDEATHSIG = 1
LOG_LINES = 15
NOT_INHERITED = ("PYTHONPATH", "LLAMA_")  # the benchmark's import path; options that the user has set


class ServerError(Exception):
    """A server did not start or answered with an error."""


@dataclass(frozen=True)
class ServerProgram:
    """One side of the comparison: a label and the command line to start it."""

    label: str
    argv: tuple[str, ...]

    def version(self) -> str:
        done = subprocess.run([*self.argv, "--version"], capture_output=True, text=True, timeout=30, check=False)
        text = (done.stdout + done.stderr).strip()
        return next((line for line in text.splitlines() if "version" in line), text.partition("\n")[0])


@dataclass(frozen=True)
class Server:
    """A running server: its address, its process, and the seconds until it answered /health with 200."""

    address: tuple[str, int]
    process: psutil.Process
    ready_s: float

    def rss_mb(self) -> float:
        """Return the resident memory of the front process alone, in MB."""
        return float(self.process.memory_info().rss) / 1e6

    def family_mb(self) -> float:
        """Return the memory of the front process and its children, in MB.

        Shared pages are counted once (PSS) if the system reports that.
        """
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.Error):
                facts = process.memory_full_info()
                total += getattr(facts, "pss", facts.rss) / 1e6
        return total


@asynccontextmanager
async def serve(
    program: ServerProgram, flags: Sequence[str], environ: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """Run the program on a free port until the context ends; `environ` is added to its environment.

    Raises ServerError if it does not start.
    """
    port = free_port()
    argv = [*program.argv, "--host", "127.0.0.1", "--port", str(port), *flags]
    with TemporaryDirectory(prefix="corral-bench-") as folder:
        log = Path(folder) / "log"
        started = time.monotonic()
        with _started(argv, log, environ or {}) as process:
            await _healthy(process, ("127.0.0.1", port), log)
            yield Server(("127.0.0.1", port), psutil.Process(process.pid), time.monotonic() - started)


@asynccontextmanager
async def route(
    program: ServerProgram, models: Mapping[str, Sequence[str]], flags: Sequence[str]
) -> AsyncIterator[Server]:
    """Run the program as a router with these models; each has its INI lines."""
    with TemporaryDirectory(prefix="corral-bench-") as folder:
        presets = Path(folder) / "presets.ini"
        presets.write_text("".join(f"[{name}]\n" + "\n".join(lines) + "\n\n" for name, lines in models.items()))
        # Without this the router would also list the models in the user's cache.
        environ = {"LLAMA_CACHE": folder, "HF_HUB_CACHE": folder}
        async with serve(program, ["--models-preset", str(presets), *flags], environ) as server:
            yield server


async def worker_address(router: Server, model: str) -> Address:
    """Return the address of the router's worker for a loaded model: a port, or the unix socket in its arguments."""
    answer = await get(router.address, "/models")
    entry = next(entry for entry in answer.json()["data"] if entry["id"] == model)
    args = entry["status"]["args"]
    host = args[args.index("--host") + 1] if "--host" in args else "127.0.0.1"
    return host if host.endswith(".sock") else ("127.0.0.1", int(args[args.index("--port") + 1]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _healthy(process: subprocess.Popen[bytes], address: tuple[str, int], log: Path) -> None:
    limit = time.monotonic() + READY_S
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise ServerError(f"the server exited with {process.returncode}:\n{_tail(log)}")
        answer = await get(address, "/health")
        if answer.good:
            return
        await asyncio.sleep(POLL_S)
    raise ServerError(f"the server was not ready after {READY_S:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


@contextmanager
def _started(argv: Sequence[str], log: Path, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(NOT_INHERITED)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
            env=inherited | dict(environ),
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the server, wait, then kill what is left of it and its descendants."""
    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    if process.poll() is None:
        process.kill()
        process.wait()
    for orphan in family:
        with suppress(psutil.Error):
            orphan.kill()


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: after it only async-signal-safe functions may be called
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
