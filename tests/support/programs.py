"""Runs the real programs for the tests: with a free address and a log file; waits for /health; checks that all exit."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import psutil

T = TypeVar("T")
Wait = Literal["ready", "listening", "nothing"]

START_SECONDS = 40.0  # two cores under load; a tiny model is ready within one second
STOP_SECONDS = 20.0
MARK = "LLAMA_CORRAL_TEST_MARK"  # environment variable by which a program's descendants are found


_PORTS = itertools.count(random.randrange(22_000))


def free_port() -> int:
    """Return a port that is free now, and that is probably still free when a program binds it.

    Each process begins at a random port and counts up, below the ports that the system gives to outgoing connections.
    """
    while True:
        port = 10_000 + next(_PORTS) % 22_000
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], T], what: str, seconds: float = START_SECONDS) -> T:
    """Return the first true value of `condition`. Raises AssertionError after the timeout."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what}, which did not happen")
        time.sleep(0.01)
    return value


def clean_environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the machine's configuration, caches and hub."""
    private = ("LLAMA_", "HF_", "HUGGING", "XDG_", "GGML_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    home.mkdir(exist_ok=True)
    return environ | {"HOME": str(home), "HF_HUB_OFFLINE": "1"} | dict(extra)


class Program:
    """A running program. `client` sends requests to it, `stop()` ends it as Ctrl-C does."""

    def __init__(self, argv: Sequence[str], *, address: str, log: Path, environ: Mapping[str, str]) -> None:
        """`address` is a TCP port of 127.0.0.1 or the path of a unix socket."""
        self.argv = list(argv)
        self.log = log
        self.mark = uuid.uuid4().hex
        self.address = address
        unix = not address.isdigit()
        self.url = "http://localhost" if unix else f"http://127.0.0.1:{address}"
        transport = httpx.HTTPTransport(uds=address) if unix else None
        self.client = httpx.Client(base_url=self.url, transport=transport, timeout=60.0, trust_env=False)
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.PIPE, stdout=out, stderr=out, env={**environ, MARK: self.mark}
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def is_listening(self) -> bool:
        return self._health() is not None

    def is_ready(self) -> bool:
        health = self._health()
        return health is not None and health.status_code == 200

    def _health(self) -> httpx.Response | None:
        if self.process.poll() is not None:
            raise AssertionError(f"{self.argv} ended with {self.process.returncode}:\n{self.log_text[-4000:]}")
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/health")
        return None

    def wait(self, wait: Wait) -> None:
        if wait != "nothing":
            wait_until(self.is_ready if wait == "ready" else self.is_listening, f"{self.argv} to be {wait}")

    def family(self) -> list[psutil.Process]:
        """Return the program and all its descendants, also those that have another parent now."""
        return [process for process in psutil.process_iter() if _mark_of(process) == self.mark]

    def models(self) -> dict[str, dict[str, Any]]:
        """Return the router's entries by id."""
        return {entry["id"]: entry for entry in self.client.get("/models").raise_for_status().json()["data"]}

    def status(self, model: str) -> str:
        return str(self.models()[model]["status"]["value"])

    def wait_for_status(self, model: str, value: str) -> None:
        wait_until(lambda: self.status(model) == value, f"{model} to be {value}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code; kill the program and fail if it does not exit."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.argv} did not end after signal {number}") from None

    def exit_code(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for the program to exit by itself and return the exit code."""
        return self.process.wait(seconds)

    def close(self) -> None:
        """Stop the program; fail if any descendant still runs."""
        try:
            self.stop()
            wait_until(lambda: not self.family(), f"the children of {self.argv} to end", STOP_SECONDS)
        finally:
            self.client.close()
            if self.process.stdin:
                with contextlib.suppress(OSError):
                    self.process.stdin.close()
            for process in self.family():
                with contextlib.suppress(psutil.Error):
                    process.kill()


def _mark_of(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        mark: str | None = process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None
    return mark


def post(program: Program, path: str, body: Any, status: int = 200) -> Any:
    """Return the JSON body of the answer, which must have this status."""
    response = program.client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def complete(gateway: Program, model: str, path: str = "/completion", **fields: object) -> httpx.Response:
    """Return a short greedy completion by `model`."""
    body = {"model": model, "prompt": "Once upon a time", "n_predict": 4, "temperature": 0, **fields}
    return gateway.client.post(path, json=body)


def worker_of(gateway: Program, model: str) -> psutil.Process:
    """Return the process that listens on the model's socket."""
    args = gateway.models()[model]["status"]["args"]
    path = args[args.index("--host") + 1]
    for process in gateway.family():
        if process.pid != gateway.pid and any(one.laddr == path for one in process.net_connections("unix")):
            return process
    raise AssertionError(f"no process listens on {path}")


class Programs:
    """Starts programs in a separate directory and stops them all."""

    def __init__(self, directory: Path, models: Path) -> None:
        self.directory = directory
        self.models = models
        self.started: list[Program] = []

    def start(
        self, argv: Sequence[str], *, address: str, env: Mapping[str, str] | None = None, wait: Wait = "ready"
    ) -> Program:
        log = self.directory / f"program-{len(self.started)}.log"
        environ = clean_environment(self.directory / "home", env or {})
        program = Program(argv, address=address, log=log, environ=environ)
        self.started.append(program)
        program.wait(wait)
        return program

    def worker(
        self,
        *args: str,
        model: str | None = "tiny-llama.gguf",
        env: Mapping[str, str] | None = None,
        wait: Wait = "ready",
    ) -> Program:
        """Start a worker alone; `model` is a file in the models directory, or None if `args` name the model."""
        port = str(free_port())
        return self.start([*self.worker_command(model), "--port", port, *args], address=port, env=env, wait=wait)

    def worker_with_template(self, source: str, *args: str, wait: Wait = "ready") -> Program:
        """Start a worker alone, with this chat template."""
        file = self.directory / f"template-{len(self.started)}.jinja"
        file.write_text(source)
        return self.worker("--chat-template-file", str(file), "--threads", "1", *args, wait=wait)

    def worker_command(self, model: str | None) -> list[str]:
        chosen = ["--model", str(self.models / model)] if model else []
        return [sys.executable, "-P", "-m", "llama_corral.worker", *chosen, "--host", "127.0.0.1"]

    def gateway(
        self,
        *args: str,
        presets: str | None = None,
        env: Mapping[str, str] | None = None,
        wait: Wait = "ready",
        port: int | None = None,
    ) -> Program:
        """Start `llama-corral`; `presets` is the text of a presets file, with `{models}` for the models directory."""
        address = str(port or free_port())
        command = str(Path(sys.executable).with_name("llama-corral"))
        argv = [command, "--host", "127.0.0.1", "--port", address, *args]
        if presets is not None:
            file = self.directory / f"presets-{len(self.started)}.ini"
            file.write_text(presets.replace("{models}", str(self.models)))
            argv += ["--models-preset", str(file)]
        return self.start(argv, address=address, env=env, wait=wait)

    def close(self) -> None:
        errors: list[AssertionError] = []
        for program in reversed(self.started):
            try:
                program.close()
            except AssertionError as error:
                errors.append(error)
        self.started.clear()
        if errors:
            raise errors[0]

    def report(self) -> str:
        """Return the last lines of all logs, for a failed test."""
        return "\n".join(f"$ {' '.join(p.argv)}\n{p.log_text[-6000:]}" for p in self.started)
